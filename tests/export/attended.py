"""Attended networks to export, and inputs to compare them on."""

import itertools

import pytest
import torch
from torch import nn

from composer_attn.attention.gates import GATES
from composer_attn.functional import attended_modules
from tests.networks import Network

each_gate = pytest.mark.parametrize(
    ("gate", "start"), list(itertools.product(GATES["paper"], GATES))
)


def attended(network: Network, surgery, **options) -> nn.Module:
    """Build a network in evaluation mode in which every attention has different scales.

    (Under ``start='identity'`` a new one scales by 1.)
    """
    model = network.build().eval()
    surgery.apply(model, **options)
    for attention in attended_modules(model).values():
        nn.init.normal_(attention.last_layer.weight)
    return model


def longer(x: torch.Tensor) -> torch.Tensor:
    """Make a different batch with one sample more."""
    return torch.randn(len(x) + 1, *x.shape[1:])


def assert_same_numbers(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a tolerance of 1e-5 of the largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
