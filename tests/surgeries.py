"""The two surgeries with small arguments, and the networks to test them on."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.functional import apply_eca, apply_squeeze_excite, plan_eca, plan_squeeze_excite
from tests.networks import MIN_CHANNELS, NETWORKS


@dataclass(frozen=True)
class Surgery:
    """A public pair of functions, with arguments that suit small networks."""

    applying: Callable
    planning: Callable
    attention: type[nn.Module]
    arguments: dict

    def apply(self, model, **options):
        return self.applying(model, **self._with(options))

    def plan(self, model, **options):
        return self.planning(model, **self._with(options))

    def _with(self, options):
        return {"min_channels": MIN_CHANNELS, **self.arguments, **options}


SURGERIES = {
    "squeeze_excite": Surgery(
        apply_squeeze_excite, plan_squeeze_excite, SqueezeExcitation, {"latent_channels": 4}
    ),
    "eca": Surgery(apply_eca, plan_eca, EfficientChannelAttention, {}),
}

each_surgery = pytest.mark.parametrize("surgery", SURGERIES.values(), ids=SURGERIES)
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def names(sites) -> tuple[str, ...]:
    return tuple(site.name for site in sites)


def attention_keys(state: dict) -> set[str]:
    """Select the keys of attention; the root of a network may be the site itself."""
    return {key for key in state if "attention" in key.split(".")}


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()
