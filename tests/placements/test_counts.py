"""Published sizes: attention at the end of each residual branch."""

import pytest
import timm
import torch
from torchvision import models

from composer_attn.functional import apply_eca, apply_squeeze_excite, attended_modules


def build(name, library="torchvision", **options):
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(name, pretrained=False, **options)
        return models.get_model(name, weights=None, **options)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("name", "bias", "blocks", "parameters"),
    [
        ("resnet50", False, 16, 28_071_976),
        ("resnet50", True, 16, 28_088_024),
        ("resnet101", True, 33, 49_326_872),
        ("resnet152", True, 50, 66_821_848),
    ],
)
def test_squeeze_excite_has_the_size_of_senet(library, name, bias, blocks, parameters):
    network = build(name, library)
    plan = apply_squeeze_excite(network, 1 / 16, 1, placement="residual", bias=bias)
    assert len(plan.chosen) == len(attended_modules(network)) == blocks
    assert count(network) == parameters


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("name", "added"),
    [("resnet18", 36), ("resnet34", 74), ("resnet50", 86), ("resnet101", 171), ("resnet152", 256)],
)
def test_adaptive_eca_adds_what_the_paper_says(library, name, added):
    network = build(name, library)
    plain = count(network)
    assert apply_eca(network, min_channels=1, placement="residual").parameters == added
    assert count(network) == plain + added


@pytest.mark.parametrize(
    ("name", "kernel_sizes", "added"),
    [
        ("resnet50", (3, 5, 5, 7), 80),
        ("resnet101", (3, 3, 5, 7), 157),
        ("resnet152", (3, 3, 5, 7), 234),
    ],
)
def test_eca_stage_by_stage_has_the_released_size(name, kernel_sizes, added):
    network = build(name)
    plain = count(network)
    for stage, size in enumerate(kernel_sizes, 1):
        apply_eca(network, size, 1, placement="residual", include=f"layer{stage}.*")
    assert count(network) == plain + added


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("attention", ["se", "eca"])
def test_sizes_are_those_of_timms_own(name, attention):
    own = build(name, "timm", block_args={"attn_layer": attention})
    ours = build(name, "timm")
    if attention == "se":
        # timm rounds the hidden width to multiples of 8.
        include = None if name == "resnet50" else "layer[234].*"
        apply_squeeze_excite(ours, 1 / 16, 1, placement="residual", bias=True, include=include)
        if name == "resnet18":
            apply_squeeze_excite(ours, 8, 1, placement="residual", bias=True, include="layer1.*")
            for block in (ours.layer2[0], ours.layer2[1]):
                assert block.bn2.attention.fc1.out_features == 8
    else:
        apply_eca(ours, min_channels=1, placement="residual")
    assert count(ours) == count(own)


def test_squeeze_excite_has_the_size_of_timms_seresnet50():
    assert count(build("seresnet50", "timm")) == 28_088_024


@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
def test_places_after_each_other_count_the_channels_of_the_network(placement):
    """Not those of attentions that are already there, which ECA's have one of."""
    network = build("resnet18")
    apply_eca(network, min_channels=1, placement="residual")
    plan = apply_eca(network, min_channels=1, placement=placement)
    channels = {site.channels for site in plan.sites}
    assert channels == {64, 128, 256, 512}
