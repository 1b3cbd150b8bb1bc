"""Configuration files: read, interpolated, merged, and checked against the schema of a run."""
