"""Fused networks take the calls for whole stages, and keep no more than without them."""

import copy

import pytest
import torch
from torch import nn

from composer_attn.functional import fuse_attention
from composer_attn.ops import region_sites
from composer_attn.ops.backends import cpp_region
from tests.fusion.own_networks import ATTENTIONS, MODULES, Own
from tests.fusion.test_recomputing import kept


def network(attention: str, activation: str) -> nn.Module:
    torch.manual_seed(0)
    model = Own(ATTENTIONS[attention](), MODULES[activation]()).double()
    nn.init.uniform_(model.norm.running_mean)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    assert fuse_attention(model, "cpp").fused
    return model


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("activation", ["silu", "silu in place", "identity"])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_from_the_calls(attention, activation, training, monkeypatch):
    model, made, run = network(attention, activation).train(training), [], cpp_region.gradient
    other, x = copy.deepcopy(model), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    monkeypatch.setattr(cpp_region, "gradient", lambda *a: made.append("gradient") or run(*a))
    found, bytes_kept = gradients(model, x), kept(model, x)
    monkeypatch.setattr(region_sites, "find_region", lambda name, x: None)
    right = gradients(other, x)
    assert made == ["gradient"] * len(made) != []
    assert bytes_kept == kept(other, x)
    for each, expected in zip(found, right, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-10)
