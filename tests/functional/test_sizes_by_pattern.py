"""Kernel sizes and latent widths that differ by stage."""

import pytest
import torchvision

from composer_attn.attention import eca_kernel_size
from composer_attn.errors import ArgumentError, PatternError
from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    plan_eca,
    plan_squeeze_excite,
)
from tests import snapshots
from tests.networks import NETWORKS, Shared

# The kernel sizes of the ECA authors' released networks, stage by stage, and what they add.
RELEASED = {
    "resnet50": ((3, 5, 5, 7), 80),
    "resnet101": ((3, 3, 5, 7), 157),
    "resnet152": ((3, 3, 5, 7), 234),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_kernel_sizes_add_the_published_parameters(name):
    sizes, added = RELEASED[name]
    by_stage = {f"layer{i}.*": size for i, size in enumerate(sizes, 1)}
    model = torchvision.models.get_model(name)
    plan = plan_eca(model, by_stage, min_channels=1, placement="residual")
    assert plan.parameters == added


def test_each_site_takes_the_value_of_the_first_pattern_that_matches():
    model = NETWORKS["resnet"].build()
    apply_eca(model, {"*.downsample.*": 9, "layer1.*": 3, "layer[1-3].*": 5}, min_channels=16)
    for name, attention in attended_modules(model).items():
        adaptive = eca_kernel_size(attention.channels)
        by_stage = {"layer1": 3, "layer2": 5, "layer3": 5}.get(name.split(".")[0], adaptive)
        assert attention.kernel_size == (9 if "downsample" in name else by_stage), name


def test_latent_widths_as_counts_and_fractions():
    model = NETWORKS["resnet"].build()
    apply_squeeze_excite(model, {"layer3.*": 1 / 16, "layer4.*": 8}, min_channels=256)
    widths = {name.split(".")[0]: a.latent_channels for name, a in attended_modules(model).items()}
    assert widths == {"layer3": 16, "layer4": 8}
    model = NETWORKS["resnet"].build()
    plan = apply_squeeze_excite(model, {"layer4.*": 8}, min_channels=256)
    widths = {name.split(".")[0]: a.latent_channels for name, a in attended_modules(model).items()}
    assert widths == {"layer3": 64, "layer4": 8}
    assert plan.parameters == 3 * 2 * 64 * 256 + 3 * 2 * 8 * 512


def test_any_name_of_a_shared_module_counts():
    model = Shared()
    apply_eca(model, {"second": 7}, min_channels=16)
    assert {n: a.kernel_size for n, a in attended_modules(model).items()} == {"stem": 3, "first": 7}


def test_the_same_patterns_again_are_valid():
    model = NETWORKS["resnet"].build()
    apply_eca(model, {"layer4.*": 7}, min_channels=16)
    before = snapshots.of_model(model)
    assert not apply_eca(model, {"layer4.*": 7}, min_channels=16).chosen
    assert snapshots.of_model(model) == before


BAD = {
    "no match": ({"layer5.*": 3}, PatternError, r"kernel_size pattern 'layer5\.\*' matches none"),
    "passed over": ({"layer1.*": 3}, PatternError, r"near names: layer"),
    "one of two": ({"layer4.*": 3, "head": 5}, PatternError, "'head'"),
    "even": ({"layer4.*": 4}, ArgumentError, "kernel_size must be odd.*; got 4"),
    "text": ({"layer4.*": "3"}, ArgumentError, "kernel_size must be a whole number"),
    "empty": ({}, ArgumentError, "kernel_size must have a pattern"),
    "no pattern": ({4: 3}, ArgumentError, "the keys of kernel_size must be a glob pattern"),
}


@pytest.mark.parametrize(("sizes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_tables_change_nothing(sizes, error, message):
    model = NETWORKS["resnet"].build()
    before = snapshots.of_model(model)
    for function in (plan_eca, apply_eca):
        with pytest.raises(error, match=message):
            function(model, sizes, min_channels=128)
    assert snapshots.of_model(model) == before


def test_a_bad_width_is_refused_by_its_own_rule():
    with pytest.raises(ArgumentError, match="latent_channels must be a whole number >= 1"):
        plan_squeeze_excite(NETWORKS["resnet"].build(), {"layer4.*": 0})
