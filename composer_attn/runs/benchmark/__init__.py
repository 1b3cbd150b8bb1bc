"""How fast a network is with and without attention, in the ways that it can be run here."""
