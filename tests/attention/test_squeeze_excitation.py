"""Squeeze-and-Excitation against Composer's, and the width of its hidden layer."""

import math
import re

import numpy as np
import pytest
import torch
from composer.algorithms.squeeze_excite import SqueezeExcite2d

from composer_attn.attention import SqueezeExcitation
from composer_attn.errors import ArgumentError


@pytest.mark.parametrize("latent_channels", [1, 4, 0.25])
def test_equals_composers_block_with_the_same_weights(latent_channels):
    ours, theirs = SqueezeExcitation(16, latent_channels), SqueezeExcite2d(16, latent_channels)
    layers = [layer for layer in theirs.modules() if isinstance(layer, torch.nn.Linear)]
    ours.fc1.load_state_dict(layers[0].state_dict())
    ours.fc2.load_state_dict(layers[1].state_dict())
    x = torch.randn(4, 16, 7, 5, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    gradients = [torch.autograd.grad(block(x).square().sum(), x)[0] for block in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("latent_channels", "channels", "expected"),
    [
        (64, 256, 64),
        (1, 256, 1),
        (300, 256, 300),  # a bottleneck may be wider than its ends
        (np.int64(8), 256, 8),
        (1 / 16, 256, 16),
        (np.float32(0.25), 256, 64),
        (0.24, 10, 2),
        (0.26, 10, 3),
        (0.29, 10, 3),
        (0.999, 2, 2),
        (0.125, 4, 1),  # Composer truncates this to 0, which leaves a constant gate
        (0.001, 256, 1),
    ],
)
def test_latent_channels_is_a_count_or_a_fraction_rounded(latent_channels, channels, expected):
    attention = SqueezeExcitation(channels, latent_channels)
    assert attention.latent_channels == expected
    assert attention.fc1.weight.shape == (expected, channels)
    assert attention.fc2.weight.shape == (channels, expected)


def test_latent_channels_defaults_to_64():
    assert SqueezeExcitation(256).latent_channels == 64


@pytest.mark.parametrize(
    "latent_channels",
    [2.9, 1.0, 0, 0.0, -3, -0.5, True, False, math.nan, math.inf, -math.inf, "64", None, [64], 1j],
)
def test_other_latent_channels_are_errors_that_say_what_is_valid(latent_channels):
    valid = "whole number >= 1, or a fraction of the channels strictly between 0 and 1"
    with pytest.raises(ArgumentError, match=valid) as caught:
        SqueezeExcitation(128, latent_channels)
    assert re.search(r"latent_channels must be .*; got ", str(caught.value))
    assert str(caught.value).endswith(repr(latent_channels))


@pytest.mark.parametrize(("bias", "parameters"), [(False, 2 * 16 * 4), (True, 2 * 16 * 4 + 16 + 4)])
def test_bias_gives_both_layers_a_bias(bias, parameters):
    attention = SqueezeExcitation(16, 4, bias=bias)
    assert sum(parameter.numel() for parameter in attention.parameters()) == parameters
    assert [layer.bias is not None for layer in (attention.fc1, attention.fc2)] == [bias, bias]
