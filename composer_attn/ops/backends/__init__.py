"""The passes over feature maps, once for each backend, and the table that chooses among them."""
