"""The attention modules, the rules that size them, and their names. Needs torch alone."""

from composer_attn.attention.base import ChannelAttention
from composer_attn.attention.efficient_channel_attention import (
    EfficientChannelAttention,
    eca_kernel_size,
)
from composer_attn.attention.registry import (
    attention_names,
    find_attention,
    name_of,
    register_attention,
)
from composer_attn.attention.squeeze_excitation import SqueezeExcitation

__all__ = [
    "ChannelAttention",
    "EfficientChannelAttention",
    "SqueezeExcitation",
    "attention_names",
    "eca_kernel_size",
    "find_attention",
    "name_of",
    "register_attention",
]
