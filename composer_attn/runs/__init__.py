"""YAML-driven runs: read a config, check it, turn it into Composer's objects, train."""
