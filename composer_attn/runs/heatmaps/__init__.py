"""Heat maps of trained runs, side by side: as files, and for the report."""
