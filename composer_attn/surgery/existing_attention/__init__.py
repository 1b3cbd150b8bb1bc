"""Built-in attention of a network, recognized by its class, its name or its forward."""
