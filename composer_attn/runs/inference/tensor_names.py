"""Names of the input and output tensors of exported networks."""

INPUT, OUTPUT = "images", "logits"
