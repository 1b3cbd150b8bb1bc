"""Attention that a network came with: known by its class or name, or by what its forward does."""
