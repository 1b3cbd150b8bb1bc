"""YAML-driven runs: read and check a config, build Composer's objects from it, and train."""
