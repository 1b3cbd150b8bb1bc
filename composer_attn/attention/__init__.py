"""The attention modules and the rules that size them. Needs torch alone."""

from composer_attn.attention.base import ChannelAttention
from composer_attn.attention.efficient_channel_attention import (
    EfficientChannelAttention,
    eca_kernel_size,
)
from composer_attn.attention.squeeze_excitation import SqueezeExcitation

__all__ = [
    "ChannelAttention",
    "EfficientChannelAttention",
    "SqueezeExcitation",
    "eca_kernel_size",
]
