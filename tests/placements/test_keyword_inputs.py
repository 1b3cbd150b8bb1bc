"""Blocks and convolutions that are called with their inputs by name compute the same."""

import copy

import pytest
import torch
from torch import nn

from composer_attn import register_block
from composer_attn.functional import attended_modules, fuse_attention
from composer_attn.surgery import blocks
from tests.surgeries import each_surgery

PLACEMENTS = ["conv", "norm", "residual", "pre", "post", "identity"]
each_placement = pytest.mark.parametrize("placement", PLACEMENTS)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Which way the block goes depends on numbers: it is not traced, but known."""
    monkeypatch.setattr(blocks, "_registered", {})
    register_block(Block, first="conv1", last="bn2", adds_last=True)


class Block(nn.Module):
    """A residual block whose input has another name than most, and which takes a number too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, hidden_states, gain=1.0):
        y = gain * self.bn1(input=self.conv1(input=hidden_states)).relu()
        return hidden_states + self.bn2(self.conv2(input=y))


class NamedX(Block):
    """Calls something else ``x``."""

    def forward(self, hidden, x=1.0):
        return super().forward(hidden, gain=x)


class Net(nn.Module):
    def __init__(self, block: nn.Module, way: str):
        super().__init__()
        self.block, self.way = block, way

    def forward(self, x):
        first, second = ("hidden", "x") if isinstance(self.block, NamedX) else (
            "hidden_states", "gain"
        )  # fmt: skip
        if self.way == "by position":
            return self.block(x, 2.0)
        if self.way == "the second by name":
            return self.block(x, **{second: 2.0})
        return self.block(**{second: 2.0, first: x})


def network(surgery, block: type[Block], placement: str) -> Net:
    net = Net(block(), "by position").double()
    surgery.apply(net, placement=placement)
    for attention in attended_modules(net).values():
        nn.init.normal_(attention.last_layer.weight)
    assert attended_modules(net)
    return net


@each_surgery
@each_placement
@pytest.mark.parametrize("block", [Block, NamedX])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["the second by name", "all by name"])
def test_the_same_by_position_and_by_name(surgery, placement, block, fused, way):
    net = network(surgery, block, placement)
    other = copy.deepcopy(net)
    if fused:
        fuse_attention(other, "reference")
    other.way = way
    x = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    expected = net(x)
    torch.testing.assert_close(other(x), expected, rtol=1e-11, atol=1e-11)


@each_surgery
def test_a_missing_input_is_an_error_that_names_it(surgery):
    net = network(surgery, Block, "identity")
    with pytest.raises(TypeError, match="attended Block takes an input, or by the name hidden_st"):
        net.block(gain=2.0)
