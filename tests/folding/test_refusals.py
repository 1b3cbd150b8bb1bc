"""What is not folded and why, and what a folded network refuses."""

import re

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse as fuse_by_fx
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from composer_attn import (
    apply_eca,
    detach_attention,
    expanded_copy,
    fold_norms,
    fuse_attention,
    plan_folding,
    unfold_norms,
    unfuse_attention,
)
from composer_attn.errors import ModelError
from tests import snapshots
from tests.folding.networks import at_random, make


def pair(conv=None, norm=None) -> nn.Sequential:
    conv, norm = conv or nn.Conv2d(3, 8, 3), norm or nn.BatchNorm2d(8)
    return at_random(nn.Sequential(conv, norm, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))


def reason(model: nn.Module) -> str:
    """Return why no norm is folded into the first convolution; one is into the second."""
    first, *_, last = plan_folding(model).pairs
    assert last.folded
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        fold_norms(model)
        torch.testing.assert_close(model(x), expected)
    return first.reason


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def with_hook(module: nn.Module, name: str) -> nn.Module:
    getattr(module, name)(lambda *seen: None)
    return module


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (pair(OwnForward(3, 8, 3)), "it has a custom forward"),
        (pair(OwnConvForward(3, 8, 3)), "it has a custom forward"),
        (pair(parametrizations.weight_norm(nn.Conv2d(3, 8, 3))), "its weights are parametrized"),
        (pair(weight_norm(nn.Conv2d(3, 8, 3))), "its weight is not a plain floating-point"),
        (pair(with_hook(nn.Conv2d(3, 8, 3), "register_forward_hook")), "it has hooks"),
        (pair(None, OwnNorm(8)), r"1 \(OwnNorm\) follows: not a batch norm"),
        (pair(None, nn.GroupNorm(2, 8)), r"1 \(GroupNorm\) follows: not a batch norm"),
        (pair(None, nn.InstanceNorm2d(8)), r"1 \(InstanceNorm2d\) follows: not a batch norm"),
        (pair(None, nn.BatchNorm2d(8, track_running_stats=False)), "statistics of each batch"),
        (pair(None, with_hook(nn.BatchNorm2d(8), "register_forward_pre_hook")), "it has hooks"),
    ],
)
def test_what_is_left(model, expected):
    assert re.search(expected, reason(model))


class Taps(nn.Module):
    """Uses what is between a convolution and its norm, in several ways."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        z = self.conv(x)
        if self.way == "twice":
            y = self.body(self.norm(z)) + z
        elif self.way == "norm_twice":
            y = self.body(self.norm(self.norm(z)))
        elif self.way == "conv_twice":
            y = self.body(self.norm(z)) + self.conv(2 * x)
        elif self.way == "weight":
            y = self.body(self.norm(z)) + F.conv2d(x, self.conv.weight, padding=1)
        elif self.way == "iterated":
            y, seen = self.norm(z), []
            for layer in self.body:
                y = layer(y)
                seen.append(y)
            y = sum(seen)
        else:  # reaches into another
            y = self.body(self.norm(z)) + self.body[0](
                x.mean(1, keepdim=True).expand(-1, 8, -1, -1)
            )
        return self.last(y)


@pytest.mark.parametrize(
    ("way", "left"),
    [
        ("twice", ["conv"]),
        ("norm_twice", ["conv"]),
        ("conv_twice", ["conv"]),
        ("weight", ["conv"]),
        ("iterated", ["body.0"]),
        ("within", ["body.0"]),
    ],
)
@pytest.mark.parametrize("attended", [False, True], ids=["plain", "attended"])
def test_what_others_see_is_left(way, left, attended):
    model, x = at_random(Taps(way)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    if attended:
        apply_eca(model, min_channels=8)
    assert [each.name for each in plan_folding(model).left] == left
    expected = model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected)


def test_modules_shared_by_two_places_are_left():
    conv, norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
    model = at_random(nn.Sequential(conv, norm, conv, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), norm))
    reasons = [each.reason for each in plan_folding(model).pairs]
    assert reasons == ["it is used in several places"] * 2


@pytest.mark.parametrize("part", ["whole", "norm"])
def test_training_mode_is_refused(part):
    model, _ = make("bias")
    (model if part == "whole" else model[4]).train()
    before = snapshots.of_model(model)
    with pytest.raises(ModelError, match=r"in training mode.*call eval\(\) first"):
        fold_norms(model)
    assert snapshots.of_model(model) == before


@pytest.mark.parametrize("attended", [False, True], ids=["plain", "attended"])
def test_a_folded_network_does_not_train(attended):
    model, x = make("bias")
    if attended:
        apply_eca(model, min_channels=8)
    fold_norms(model)
    with pytest.raises(ModelError, match=r"unfold_norms\(model\) to train it"):
        model.train()(x)
    assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize(
    "function",
    [fold_norms, plan_folding, fuse_attention, unfuse_attention, detach_attention, apply_eca,
     expanded_copy],
)  # fmt: skip
def test_a_folded_network_is_unfolded_before_anything_else(function):
    model, _ = make("bias")
    apply_eca(model, min_channels=8)
    fold_norms(model)
    before = snapshots.of_model(model)
    with pytest.raises(ModelError, match=r"0 is folded.*call unfold_norms first"):
        function(model)
    assert snapshots.of_model(model) == before


def test_compiled_and_scripted_models_are_refused():
    model, x = make("bias")
    scripted = torch.jit.trace(model, x)
    for other, kind in ((torch.compile(model), "OptimizedModule"), (scripted, "ScriptModule")):
        for function in (fold_norms, plan_folding, unfold_norms):
            with pytest.raises(ModelError, match=kind):
                function(other)


def test_weights_of_before_do_not_load_into_a_folded_network():
    model, x = make("bias")
    apply_eca(model, min_channels=8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold_norms(model)
    before, expected = snapshots.of_model(model), model(x)
    for strict in (True, False):
        with pytest.raises(ModelError, match="call unfold_norms"):
            model.load_state_dict(state, strict=strict)
        with pytest.raises(ModelError, match="call unfold_norms"):
            nn.ModuleDict({"network": model}).load_state_dict(
                {f"network.{name}": tensor for name, tensor in state.items()}, strict=strict
            )
    assert snapshots.of_model(model) == before
    assert torch.equal(model(x), expected)
    model.load_state_dict(model.state_dict())
    unfold_norms(model)
    model.load_state_dict(state)


def test_the_attributes_of_a_folded_norm_say_where_they_are():
    model, _ = make("bias")
    fold_norms(model)
    with pytest.raises(AttributeError, match="no longer has 'running_mean'"):
        _ = model[1].running_mean
    with pytest.raises(AttributeError, match="has no attribute 'anything'"):
        _ = model[1].anything


def test_what_others_fold_leaves_a_folded_network_alone():
    model, x = make("inverted")
    apply_eca(model, min_channels=8)
    fold_norms(model)
    expected = model(x)
    torch.testing.assert_close(fuse_by_fx(model)(x), expected)
    with pytest.raises(ModelError, match="fuse_modules cannot fold"):
        fuse_modules(model, ["1.depthwise", "1.depthwise_norm"])
    with pytest.raises(AttributeError, match=r"call composer_attn\.unfold_norms"):
        fuse_conv_bn_eval(model[1].depthwise, model[1].depthwise_norm)
    torch.testing.assert_close(model(x), expected)
