"""The components that a config can name (algorithms, optimizers, ...), and their checks."""
