"""Plans from the command line: the attention that a network would get, and its cost."""
