"""Efficient Channel Attention against timm's, and the rule for its kernel size."""

import math

import numpy as np
import pytest
import torch
from timm.layers import EcaModule

from composer_attn.attention import EfficientChannelAttention, eca_kernel_size
from composer_attn.errors import ArgumentError


@pytest.mark.parametrize("channels", [8, 16, 128, 200])
def test_equals_timms_block_with_the_same_weights(channels):
    ours, theirs = EfficientChannelAttention(channels), EcaModule(channels)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, channels, 7, 5, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    gradients = [torch.autograd.grad(block(x).square().sum(), x)[0] for block in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_equals_timms_block_at_an_explicit_kernel_size(kernel_size):
    ours = EfficientChannelAttention(6, kernel_size)
    theirs = EcaModule(kernel_size=kernel_size)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_kernel_sizes_follow_the_rule_for_every_number_of_channels():
    # In whole numbers: floor((log2 C + 1) / 2) is half the number of binary digits of C; then | 1.
    rule = [channels.bit_length() // 2 | 1 for channels in range(1, 4097)]
    assert [eca_kernel_size(channels) for channels in range(1, 4097)] == rule


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(range(1, 8), 1), (range(8, 128), 3), (range(128, 2048), 5), (range(2048, 4097), 7)],
)
def test_kernel_sizes_have_their_published_anchors(channels, expected):
    assert {eca_kernel_size(count) for count in channels} == {expected}


@pytest.mark.parametrize(
    ("gamma", "b", "expected"),
    [(1, 0, 9), (1, 1, 9), (2, 3, 5), (4, 1, 3), (-2, 1, 5), (0.5, 0, 17)],
)
def test_gamma_and_b_change_the_rule(gamma, b, expected):
    # 256 channels: |(8 + b) / gamma|, cut to a whole number, or the next where that is even.
    assert eca_kernel_size(256, gamma, b) == expected
    attention = EfficientChannelAttention(256, gamma=gamma, b=b)
    assert attention.conv.weight.shape == (1, 1, expected)


@pytest.mark.parametrize("kernel_size", [1, 3, 9, 301, np.int64(7)])
def test_an_explicit_kernel_size_always_wins(kernel_size):
    attention = EfficientChannelAttention(256, kernel_size, gamma=1)
    assert attention.kernel_size == kernel_size
    assert attention.conv.weight.shape == (1, 1, kernel_size)
    assert attention(torch.randn(1, 256, 2, 2)).shape == (1, 256, 2, 2)


@pytest.mark.parametrize("kernel_size", [2, 4, 100])
def test_an_even_kernel_size_is_an_error_that_says_what_is_valid(kernel_size):
    message = f"kernel_size must be odd, or None for the paper's adaptive rule; got {kernel_size}"
    with pytest.raises(ArgumentError, match=message):
        EfficientChannelAttention(256, kernel_size)


@pytest.mark.parametrize("kernel_size", [0, -1, -3, True, 3.0, math.nan, "3", [3]])
def test_other_kernel_sizes_are_errors_that_say_what_is_valid(kernel_size):
    with pytest.raises(ArgumentError, match="kernel_size must be a whole number >= 1; got "):
        EfficientChannelAttention(256, kernel_size)


@pytest.mark.parametrize("kernel_size", [None, 3])
@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"gamma": math.nan}, {"gamma": "2"},
                                   {"gamma": True}, {"b": math.inf}, {"b": None}])  # fmt: skip
def test_gamma_and_b_are_checked_even_where_they_are_not_used(kernel_size, wrong):
    name = next(iter(wrong))
    with pytest.raises(ArgumentError, match=f"{name} must be a real number"):
        EfficientChannelAttention(256, kernel_size, **wrong)


@pytest.mark.parametrize("channels", [0, -1, 2.5, True, "8"])
def test_the_rule_takes_whole_numbers_of_channels(channels):
    with pytest.raises(ArgumentError, match="channels must be a whole number >= 1"):
        eca_kernel_size(channels)


def test_weights_are_drawn_as_those_of_a_convolution():
    torch.manual_seed(1)
    expected = torch.nn.Conv1d(1, 1, 5, bias=False).weight
    torch.manual_seed(1)
    assert torch.equal(EfficientChannelAttention(256).conv.weight, expected)


def test_has_no_bias():
    attention = EfficientChannelAttention(256)
    assert [name for name, _ in attention.named_parameters()] == ["conv.weight"]
