"""Norms without attention are fused with what follows them, if requested."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_attn import fuse_attention, unfuse_attention
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.fused_norms import is_fused
from tests.fusion.networks import Net
from tests.fusion.own_networks import (
    FUNCTIONS,
    MODULES,
    assert_same,
    everything,
    own_pair,
    randomized,
    small,
)


class Block(nn.Module):
    """A residual block with a given end."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.end = end

    def forward(self, x):
        return self.end(self, self.norm(self.conv(x)), x)


ENDS = {
    "addition, ReLU": (lambda s, y, x: s.act(y + x), "add", True),
    "addition in place, ReLU in place": (lambda s, y, x: F.relu_(y.add_(x)), "add_", True),
    "addition": (lambda s, y, x: x + y, "add", False),
    "addition, SiLU": (lambda s, y, x: F.silu(y + x), "add", False),
    "SiLU, addition": (lambda s, y, x: F.silu(y) + x, "", True),
    "twice": (lambda s, y, x: s.act(y) + F.silu(y), None, False),
    "neither": (lambda s, y, x: y * x, None, False),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_additions_and_activations_agree(end, training, backend):
    call, addition, activated = ENDS[end]
    plain, fused = own_pair(Block(call), backend, fused=0, norms=True)
    plan = fuse_attention(fused, backend, norms=True)
    if addition is None:
        assert not plan.norms
    else:
        (site,) = plan.norms
        assert (site.norm, site.addition, bool(site.activation)) == ("norm", addition, activated)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    both = [everything(model.train(training), x) for model in (plain, fused)]
    assert_same(both[1], both[0])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("frozen", [True, False])
def test_every_activation_function_agrees(function, frozen):
    model = Block(lambda s, y, x: FUNCTIONS[function](y))
    plain, fused = own_pair(model, fused=0, norms=True)
    for each in (plain, fused):
        each.norm.train(not frozen)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    assert_same(everything(fused, x), everything(plain, x))


@pytest.mark.parametrize("activation", [name for name in MODULES if name != "identity"])
def test_every_activation_module_agrees_and_nothing_is_written(activation, monkeypatch):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), MODULES[activation](), nn.Conv2d(8, 2, 1)]
    plain, fused = own_pair(nn.Sequential(*layers), fused=0, norms=True)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    assert_same(everything(fused, x), everything(plain, x))
    written = []
    monkeypatch.setattr(Deferred, "_numbers", lambda self: written.append(self))
    fused(x)
    assert not written


def test_a_whole_network_counts_its_norms_and_is_undone():
    torch.manual_seed(0)
    plain = randomized(Net()).double()
    fused = copy.deepcopy(plain)
    plan = fuse_attention(fused, "reference", norms=True)
    # Both branches of a block are added: one of the norms is fused with the addition.
    assert [site.name for site in plan.norms] == [
        "bn1", "layers.0.bn1", "layers.0.bn2", "layers.1.bn1", "layers.1.bn2"
    ]  # fmt: skip
    assert str(plan).startswith(
        "backend reference: 0 of 0 sites fused with a norm, 0 with an activation, 0 with an "
        "addition; 5 other norms, 5 with an activation, 2 with an addition\n"
    )
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64)
    assert_same(everything(fused, x), everything(plain, x))
    assert unfuse_attention(fused) == []
    assert not any(map(is_fused, fused.modules()))
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]


def test_norms_are_not_fused_unless_requested():
    model = nn.Sequential(small(), nn.BatchNorm2d(4), nn.ReLU())
    assert not fuse_attention(model, "reference").norms
    assert not is_fused(model[1])
    assert [s.name for s in fuse_attention(model, "reference", norms=True).norms] == ["1"]
    assert not fuse_attention(model, "reference").norms
    assert not is_fused(model[1])


def test_a_norm_and_activation_of_timms_in_one():
    layers = pytest.importorskip("timm.layers")
    for options in ({"act_layer": nn.SiLU}, {}, {"act_layer": "gelu"}):
        norm = layers.BatchNormAct2d(8, **options)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, layers.SEModule(8), nn.Conv2d(8, 2, 1))
        plain, fused = own_pair(model)
        (site,) = fuse_attention(fused, "reference").fused
        assert (site.norm, site.activation) == ("1", "1.act")
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
        assert_same(everything(fused, x), everything(plain, x))
        seen = [[], []]
        for model, own in zip((plain, fused), seen, strict=True):
            model[1].act.register_forward_hook(lambda m, x, y, own=own: own.append(y.detach() + 0))
            model(x)
        torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-12)
