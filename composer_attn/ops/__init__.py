"""The passes over feature maps that channel attention is made of. Needs torch alone."""

from composer_attn.ops.reference import channel_means, scale_channels

__all__ = ["channel_means", "scale_channels"]
