"""The passes over feature maps for each backend, and the table that selects one."""
