"""Compound scaling: a search for how to divide more operations over depth, width and resolution."""
