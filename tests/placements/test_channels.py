"""How many channels there are at a block's ends, where its own layers do not all see them."""

import pytest
import timm
import torch
from torch import nn

from composer_attn import register_block
from composer_attn.functional import apply_eca, attended_modules, detach_attention, plan_eca
from composer_attn.surgery import blocks

# (network of timm's, placement, how many points are chosen, reason why others are not)
CASES = [
    # The shortcuts of RegNets and ByobNets that are the input itself are an Identity ...
    ("regnetx_002", "identity", 13, None),
    ("resnext26ts", "identity", 8, None),
    # ... and where there is None, there is none.
    ("regnetz_005", "identity", 17, "it has no shortcut"),
    # Attention of one head on a part of the channels, which its first convolution alone sees.
    ("shvit_s1", "pre", 39, None),
    ("shvit_s1", "identity", 39, None),
    # Two convolutions that make half of the channels each end a branch.
    ("ghostnet_050", "residual", 16, None),
    # Shortcuts that start behind the first layers, which widen.
    ("repvit_m1", "pre", 26, None),
    ("repghostnet_050", "pre", 48, None),
]


@pytest.mark.parametrize(("name", "placement", "count", "reason"), CASES)
def test_points_of_real_networks_have_the_channels_that_come_by(name, placement, count, reason):
    network = timm.create_model(name, pretrained=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = network.eval()(x)
        plan = apply_eca(network, min_channels=1, placement=placement)
        assert len(plan.chosen) == count
        assert {site.reason for site in plan.passed_over} == ({reason} if reason else set())
        network(x)  # each attention refuses another number of channels than its own
    for name, attention in attended_modules(network).items():
        assert attention.channels == next(s.channels for s in plan.chosen if s.name == name)
    detach_attention(network)
    with torch.no_grad():
        assert torch.equal(network(x), before)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = Unknown(), Unknown()
        self.middle = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.last(self.middle(self.first(x)))


@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
def test_where_no_layer_tells_the_channels_the_plan_says_so(placement, monkeypatch):
    monkeypatch.setattr(blocks, "_registered", {})
    register_block(Block, first="first", last="last", adds_last=True)
    (site,) = plan_eca(nn.Sequential(Block()), min_channels=1, placement=placement).sites
    assert not site.chosen
    assert site.reason == "no layer defines its number of channels"
