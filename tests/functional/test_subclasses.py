"""Convolutions of other classes: subclasses, parametrizations, normalizations of weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm

from composer_attn.errors import ModelError
from composer_attn.functional import attended_modules, detach_attention
from tests import equations, snapshots
from tests.networks import MIN_CHANNELS
from tests.surgeries import each_surgery, names


class Standardized(nn.Conv2d):
    """A subclass that overrides forward, as timm's StdConv2d does."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-6)
        return nn.functional.conv2d(x, w, self.bias, padding=self.padding)


class Standardize(nn.Module):
    def forward(self, w):
        return (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-6)


class Shift(nn.Module):
    def forward(self, bias):
        return bias + 1


def standardized():
    return Standardized(3, MIN_CHANNELS, 3, padding=1)


def parametrized():
    conv = nn.Conv2d(3, MIN_CHANNELS, 3, padding=1)
    return parametrize.register_parametrization(conv, "weight", Standardize())


def weight_normed():
    return parametrizations.weight_norm(nn.Conv2d(3, MIN_CHANNELS, 3, padding=1))


def spectral_normed():
    return parametrizations.spectral_norm(nn.Conv2d(3, MIN_CHANNELS, 3, padding=1)).eval()


def spectral_normed_by_hook():
    return old_spectral_norm(nn.Conv2d(3, MIN_CHANNELS, 3, padding=1)).eval()


def pruned():
    return prune.random_unstructured(nn.Conv2d(3, MIN_CHANNELS, 3, padding=1), "weight", 0.5)


def parametrized_without_bias():
    conv = nn.Conv2d(3, MIN_CHANNELS, 3, padding=1, bias=False)
    return parametrizations.weight_norm(conv)


BUILDERS = [
    standardized, parametrized, weight_normed, spectral_normed, spectral_normed_by_hook, pruned,
    parametrized_without_bias,
]  # fmt: skip
each_conv = pytest.mark.parametrize("build", BUILDERS)
each_after = pytest.mark.parametrize(
    "register",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda conv: parametrize.register_parametrization(conv, "weight", Standardize()),
    ],
    ids=["weight_norm", "spectral_norm", "standardize"],
)


@each_surgery
@each_conv
def test_the_output_is_that_of_the_subclass_then_attended(surgery, build):
    model = nn.Sequential(build()).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain = model(x)
    plan = surgery.apply(model)
    assert names(plan.chosen) == ("0",)
    attention = attended_modules(model)["0"]
    expected = equations.scale(plain, equations.excitation(attention, plain))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@each_surgery
@each_conv
def test_detaching_a_subclass_is_exact(surgery, build):
    model, x = nn.Sequential(build()), torch.randn(2, 3, 6, 6)
    plain, before = model(x), snapshots.of_model(model)
    surgery.apply(model)
    detach_attention(model)
    assert snapshots.of_model(model) == before
    assert torch.equal(model(x), plain)


@each_surgery
@each_conv
def test_optimizers_follow_by_whatever_parameters_a_subclass_has(surgery, build):
    model, x = nn.Sequential(build()).train(), torch.randn(2, 3, 6, 6)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    surgery.apply(model, optimizers=optimizer)
    group = optimizer.param_groups[0]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    model(x).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None for p in attended_modules(model)["0"].parameters())


@each_surgery
@pytest.mark.parametrize("build", [standardized, parametrized, weight_normed, spectral_normed])
def test_deep_copies_of_a_subclass_compute_the_same(surgery, build):
    model, x = nn.Sequential(build()).eval(), torch.randn(2, 3, 6, 6)
    surgery.apply(model)
    duplicate = copy.deepcopy(model)
    assert torch.equal(duplicate(x), model(x))
    detach_attention(duplicate)
    assert "0" in attended_modules(model)


@each_surgery
@each_after
def test_parametrizations_work_on_attended_modules(surgery, register):
    model = nn.Sequential(nn.Conv2d(3, MIN_CHANNELS, 3)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    surgery.apply(model)
    register(model[0])
    model.eval()
    bare = nn.functional.conv2d(x, model[0].weight, model[0].bias)
    expected = equations.scale(bare, equations.excitation(model[0].attention, bare))
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    assert tuple(attended_modules(model)) == ("0",)


@each_surgery
@each_after
def test_detaching_below_a_later_parametrization_is_a_clear_error(surgery, register):
    model = nn.Sequential(nn.Conv2d(3, MIN_CHANNELS, 3), nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS, 1))
    surgery.apply(model)
    register(model[0])
    before = snapshots.of_model(model)
    with pytest.raises(ModelError, match=r"the class of 0 was extended after the surgery .* undo"):
        detach_attention(model)
    assert snapshots.of_model(model) == before
    parametrize.remove_parametrizations(model[0], "weight")
    assert list(detach_attention(model)) == ["0", "1"]
    assert type(model[0]) is nn.Conv2d


@each_surgery
def test_a_second_parametrization_after_the_surgery_is_a_clear_error_too(surgery):
    # It adds a property to the attended class, instead of extending it.
    model, x = nn.Sequential(parametrized()), torch.randn(2, 3, 6, 6)
    surgery.apply(model)
    parametrize.register_parametrization(model[0], "bias", Shift())
    with pytest.raises(ModelError, match="the class of 0 was extended after the surgery"):
        detach_attention(model)
    assert tuple(attended_modules(model)) == ("0",)
    assert model(x).shape == (2, MIN_CHANNELS, 6, 6)


@each_surgery
def test_an_earlier_parametrization_can_be_removed_after_detaching(surgery):
    model = nn.Sequential(parametrized())
    weight = model[0].weight.detach().clone()
    surgery.apply(model)
    detach_attention(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Conv2d
    assert torch.equal(model[0].weight, weight)
