"""What a config can name: algorithms, optimizers, callbacks and more; and its check."""
