"""Plans from the command line: what attention a network would get, and what it would cost."""
