"""Small attentions, and the options to test them with."""

from functools import partial

import pytest
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation

ATTENTIONS = {
    "squeeze_excitation": partial(SqueezeExcitation, latent_channels=5),
    "squeeze_excitation_with_bias": partial(SqueezeExcitation, latent_channels=5, bias=True),
    "eca": partial(EfficientChannelAttention, kernel_size=3),
}
GATES = ("sigmoid", "hard_sigmoid", "tanh", "relu")
STARTS = ("paper", "identity")
SPATIAL = {"1d": (5,), "2d": (3, 4), "3d": (2, 3, 2)}

each_attention = pytest.mark.parametrize("build", ATTENTIONS.values(), ids=ATTENTIONS)
each_gate = pytest.mark.parametrize("gate", GATES)
each_start = pytest.mark.parametrize("start", STARTS)
each_spatial = pytest.mark.parametrize("spatial", SPATIAL.values(), ids=SPATIAL)


def randomize(module: nn.Module) -> nn.Module:
    """Redraw all parameters, including those that an identity start has zeroed."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module
