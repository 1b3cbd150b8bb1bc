"""Attentions of torchvision and timm, described by data, are computed as their own modules are."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from composer_attn.ops import activate_attend, normalize_activate_attend
from composer_attn.ops.excitations import Described, neighbours, one_layer, two_layers
from tests.ops.regions import SMALL, distance, draw

CHANNELS = SMALL[1]


def of_torchvision(activation, gate) -> tuple[nn.Module, partial[Described]]:
    misc = pytest.importorskip("torchvision.ops.misc")
    gates = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}
    module = misc.SqueezeExcitation(CHANNELS, 3, activation, gates[gate])
    return module, lambda m: two_layers(m.fc1, m.fc2, m.activation, gate)


def of_timm(kind):
    layers = pytest.importorskip("timm.layers")
    if kind == "SqueezeExcite":
        blocks = pytest.importorskip("timm.models._efficientnet_blocks")
        module = blocks.SqueezeExcite(CHANNELS, rd_channels=3, act_layer=nn.SiLU)
        return module, lambda m: two_layers(m.conv_reduce, m.conv_expand, m.act1)
    if kind == "SEModule":
        module = layers.SEModule(CHANNELS, rd_channels=3)
        return module, lambda m: two_layers(m.fc1, m.fc2, m.act)
    if kind == "EffectiveSEModule":
        return layers.EffectiveSEModule(CHANNELS), lambda m: one_layer(m.fc, "hard_sigmoid")
    return layers.EcaModule(CHANNELS), lambda m: neighbours(CHANNELS, m.conv)


FOUND = {
    "torchvision": partial(of_torchvision, nn.SiLU, "sigmoid"),
    "torchvision, MobileNet-V3": partial(of_torchvision, nn.ReLU, "hard_sigmoid"),
    **{
        kind: partial(of_timm, kind)
        for kind in ("SqueezeExcite", "SEModule", "EffectiveSEModule", "EcaModule")
    },
}


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("find", FOUND.values(), ids=FOUND)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [False, True])
def test_an_attention_as_published_after_norm_and_activation(backend, find, training, last):
    attention, described = find()
    norm = nn.BatchNorm2d(CHANNELS)
    for parameter in [*norm.parameters(), *attention.parameters()]:
        nn.init.normal_(parameter)
    nn.init.normal_(norm.running_mean)
    pair = nn.ModuleList([norm, attention]).double().train(training)
    found = []
    for own in (True, False):
        norm, attention = copy.deepcopy(pair)
        torch.manual_seed(0)
        x, dy = (draw(SMALL, last=last, mean=0) for _ in range(2))
        x.requires_grad_()
        if own:
            y = attention(nn.functional.hardswish(norm(x)))
        else:
            y = normalize_activate_attend(x, norm, "hardswish", described(attention), backend)
        wanted = [x, *norm.parameters(), *attention.parameters()]
        found.append([y, *torch.autograd.grad(y, wanted, dy), norm.running_mean, norm.running_var])
    for ours, expected in zip(*found, strict=True):
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        assert distance(ours, expected) < 1e-12
    with torch.no_grad():
        alone = activate_attend(x, "silu", described(attention), backend)
        torch.testing.assert_close(alone, attention(nn.functional.silu(x)), rtol=1e-12, atol=1e-12)
