"""The attention modules, their sizing rules and their registry. Requires only torch."""

# isort: off
# The order of registration is the order in which plans and reports list attentions.
from composer_attn.attention.base import ChannelAttention
from composer_attn.attention.registry import (
    attention_names,
    find_attention,
    name_of,
    register_attention,
)
from composer_attn.attention.squeeze_excitation import SqueezeExcitation
from composer_attn.attention.efficient_channel_attention import (
    EfficientChannelAttention,
    eca_kernel_size,
)
# isort: on

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
