"""What a YAML file says: read, interpolated, merged and checked against the schema of a run."""
