"""Studies: the variants of a recipe, trained one after the other and compared."""
