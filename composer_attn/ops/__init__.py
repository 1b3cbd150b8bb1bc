"""The passes over feature maps that channel attention is made of. Needs torch alone."""

from composer_attn.ops.reference import (
    channel_maxima,
    channel_means,
    channel_vectors,
    scale_channels,
    scale_vectors,
)

__all__ = [
    "channel_maxima",
    "channel_means",
    "channel_vectors",
    "scale_channels",
    "scale_vectors",
]
