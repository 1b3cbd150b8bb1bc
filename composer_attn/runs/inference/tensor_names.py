"""What the input and the output of an exported network are called."""

INPUT, OUTPUT = "images", "logits"
