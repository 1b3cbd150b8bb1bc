"""Convolutions in modules that are not attention are attended."""

import pytest
import torch
from torch import nn

from composer_attn.errors import NothingAttendedWarning, PlacementError
from composer_attn.functional import apply_eca, attended_modules, plan_eca, remove_attention
from tests import snapshots
from tests.existing import mixed, others
from tests.existing.table import CHANNELS, Network
from tests.surgeries import each_surgery, names

# With the convolutions that are attended in each.
WITHOUT_ATTENTION = {
    "SEBlock": (lambda: others.SEBlock(CHANNELS), ("conv1", "conv2")),
    "SEModule": (lambda: others.SEModule(CHANNELS), ("conv1", "conv2")),
    "ChannelAttention": (lambda: others.ChannelAttention(CHANNELS), ("conv1", "conv2")),
    "SEUntraced": (lambda: others.SEUntraced(CHANNELS), ("conv1", "conv2")),
    "Swish": (others.Swish, ()),
    "LayerScale": (lambda: others.LayerScale(CHANNELS), ()),
    "GRN": (lambda: others.GRN(CHANNELS), ()),
    "RMSNorm2d": (lambda: others.RMSNorm2d(CHANNELS), ()),
    "L2Norm": (others.L2Norm, ()),
    "DropPath": (others.DropPath, ()),
    "GLU": (lambda: others.GLU(CHANNELS), ("gate",)),
    "ASPPPooling": (lambda: others.ASPPPooling(CHANNELS), ("conv",)),
    "Head": (lambda: others.Head(CHANNELS), ("conv",)),
    "Mask": (lambda: others.Mask(CHANNELS), ("conv",)),
    "InPlaceReLU": (others.InPlaceReLU, ()),
}
# With those that are passed over, and why.
WITH_ATTENTION = {
    "SELayer": (lambda: others.SELayer(CHANNELS), ("conv1", "conv2"), {}),
    "SqueezeExcite": (
        lambda: others.SqueezeExcite(CHANNELS),
        ("conv1", "conv2"),
        dict.fromkeys(("fc1", "fc2"), "inside the attention of SqueezeExcite 'own'"),
    ),
    "RCAB": (lambda: others.RCAB(CHANNELS), ("body.0", "body.2"), {}),
    "AttentionRefinementModule": (
        lambda: others.AttentionRefinementModule(CHANNELS),
        ("conv",),
        {"conv_atten": "inside the attention of AttentionRefinementModule 'own'"},
    ),
    "ResNetCBAM": (
        lambda: others.ResNetCBAM(
            CHANNELS, mixed.ChannelAttention(CHANNELS), mixed.SpatialAttention()
        ),
        ("conv1",),
        {
            **dict.fromkeys(("ca.fc.0", "ca.fc.2"), "inside ChannelAttention 'own.ca'"),
            "sa.conv1": "inside SpatialAttention 'own.sa'",
        },
    ),
    "ResNetCBAM, nameless": (
        lambda: others.ResNetCBAM(CHANNELS, mixed.Scales(CHANNELS), mixed.Places()),
        ("conv1",),
        {
            **dict.fromkeys(("ca.fc.0", "ca.fc.2"), "inside Scales 'own.ca'"),
            "sa.conv1": "inside Places 'own.sa'",
        },
    ),
}


def within(convolutions):
    return tuple(f"own.{name}" for name in convolutions)


@each_surgery
@pytest.mark.parametrize(
    ("build", "convolutions"), WITHOUT_ATTENTION.values(), ids=WITHOUT_ATTENTION
)
def test_modules_declared_as_none_are_attended_and_not_replaced(surgery, build, convolutions):
    model = Network(build())
    before = snapshots.of_model(model)
    with pytest.raises(PlacementError, match="Network has no attention of its own"):
        surgery.apply(model, replace=True)
    with pytest.warns(NothingAttendedWarning, match="no attention of its own"):
        assert remove_attention(model) == {}
    assert snapshots.of_model(model) == before
    plan = surgery.apply(model, min_channels=1)
    assert names(plan.chosen) == (*within(convolutions), "conv", "last")


@each_surgery
@pytest.mark.parametrize(
    ("build", "convolutions", "reasons"), WITH_ATTENTION.values(), ids=WITH_ATTENTION
)
def test_a_block_with_attention_in_it_keeps_its_convolutions(surgery, build, convolutions, reasons):
    model = Network(build())
    plan = surgery.apply(model, min_channels=1)
    assert names(plan.chosen) == (*within(convolutions), "conv", "last")
    assert tuple(attended_modules(model)) == names(plan.chosen)
    passed = {site.name: site.reason for site in plan.passed_over}
    assert passed == {f"own.{name}": reason for name, reason in reasons.items()}


@pytest.mark.parametrize("name", ["SELayer", "RCAB"])
def test_of_such_a_block_only_the_attention_is_replaced(name):
    model, x = Network(WITH_ATTENTION[name][0]()), torch.randn(2, 3, 8, 8)
    (where,) = (n for n, m in model.named_modules() if type(m).__name__ == "SE_Block")
    outputs = model(x)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    plan = apply_eca(model, replace=True)
    assert [(s.name, s.channels) for s in plan.chosen] == [(where, CHANNELS)]
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert not torch.allclose(model(x), outputs)


@pytest.mark.parametrize("name", ["SqueezeExcite", "AttentionRefinementModule", "ResNetCBAM"])
def test_attention_that_is_not_a_separate_module_cannot_be_replaced(name):
    with pytest.raises(PlacementError, match="Network has no attention of its own"):
        plan_eca(Network(WITH_ATTENTION[name][0]()), replace=True)


def test_what_does_more_than_rescale_is_not_replaced():
    with pytest.raises(PlacementError):
        plan_eca(Network(others.SEReLU(CHANNELS)), replace=True)
