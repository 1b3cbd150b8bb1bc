"""Which convolutions are attended: by name, by function, bare or inside a ComposerClassifier."""

import copy

import pytest
import torchvision
from composer import functional as composer_functional
from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExciteConv2d
from composer.models import ComposerClassifier
from torch import nn

from composer_attn.errors import NothingAttendedWarning, PatternError
from composer_attn.functional import attended_modules
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery, names

RESNET = NETWORKS["resnet"]


def wrapped():
    return ComposerClassifier(RESNET.build(), num_classes=10)


each_wrapping = pytest.mark.parametrize(
    ("build", "prefix"), [(RESNET.build, ""), (wrapped, "module.")], ids=["bare", "wrapped"]
)


def bare(sites):
    return [name.removeprefix("module.") for name in names(sites)]


@each_surgery
@each_wrapping
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "layer4.*"}, ["layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0"]),
        ({"include": "conv1"}, ["conv1"]),
        ({"include": ["conv1", "*.downsample.0"], "exclude": "layer[34].*"},
         ["conv1", "layer2.0.downsample.0"]),
        ({"include": "layer[12].*", "exclude": ["*.conv1", "*.0.downsample.*"]},
         ["layer1.0.conv2", "layer2.0.conv2"]),
        ({"exclude": ["conv1", "layer[1-3].*", "*.0"]}, ["layer4.0.conv1", "layer4.0.conv2"]),
        ({"include": ("layer3.0.conv2",)}, ["layer3.0.conv2"]),
    ],
)  # fmt: skip
def test_patterns_choose_the_same_sites_bare_and_wrapped(surgery, build, prefix, options, expected):
    model = build()
    plan = surgery.apply(model, **options)
    assert bare(plan.chosen) == expected
    assert list(attended_modules(model)) == [f"{prefix}{name}" for name in expected]


@each_surgery
@each_wrapping
def test_a_leading_module_in_a_pattern_makes_no_difference(surgery, build, prefix):
    options = {"include": ["module.layer4.*", "layer3.*"], "exclude": "module.layer4.0.conv1"}
    plan = surgery.plan(build(), **options)
    assert bare(plan.chosen) == [
        "layer3.0.conv1",
        "layer3.0.conv2",
        "layer3.0.downsample.0",
        "layer4.0.conv2",
        "layer4.0.downsample.0",
    ]


@each_surgery
@each_wrapping
@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("layer4", "layer4.0.conv1, layer4.0.conv2, layer4.0.downsample.0"),
        ("layer4.0.conv3", "layer4.0.conv2, layer4.0.conv1"),
        ("module.layer2.0.downsample", "layer2.0.downsample.0"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(
    surgery, build, prefix, argument, pattern, near
):
    model = build()
    before = snapshots.of_model(model)
    message = f"{argument} pattern '{pattern}' matches none of 12 candidates; near names: {near}"
    with pytest.raises(PatternError, match=message):
        surgery.apply(model, **{argument: ["conv1", pattern]})
    assert snapshots.of_model(model) == before


@each_surgery
def test_a_pattern_may_match_candidates_that_are_too_small(surgery):
    # It names something that is there: the plan says why it is passed over.
    with pytest.warns(NothingAttendedWarning, match="stem .* fewer channels than min_channels=16"):
        surgery.apply(NETWORKS["residual"].build(), include="stem")


@each_surgery
@pytest.mark.parametrize("alias", ["first", "second", "sec*"])
def test_every_name_of_a_shared_module_matches(surgery, alias):
    shared = NETWORKS["shared"].build
    assert names(surgery.plan(shared(), include=alias).chosen) == ("first",)
    assert names(surgery.plan(shared(), exclude=alias).chosen) == ("stem",)


@each_surgery
def test_a_filter_is_asked_for_each_remaining_convolution(surgery):
    model, asked = NETWORKS["resnet"].build(), []

    def choose(name, module):
        asked.append((name, module))
        return name.endswith("conv2")

    plan = surgery.apply(model, include="layer*", exclude="layer1.*", filter_fn=choose)
    expected = [name for name in RESNET.sites if name.startswith(("layer2", "layer3", "layer4"))]
    assert [name for name, _ in asked] == expected
    assert all(module is model.get_submodule(name) for name, module in asked)
    assert names(plan.chosen) == ("layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2")


@each_surgery
def test_an_error_in_a_filter_changes_nothing(surgery):
    model = NETWORKS["residual"].build()
    before = snapshots.of_model(model)

    def choose(name, module):
        if name == "shortcut.0":
            raise RuntimeError("no idea")
        return True

    with pytest.raises(RuntimeError, match="no idea"):
        surgery.apply(model, filter_fn=choose)
    assert snapshots.of_model(model) == before


@each_surgery
@each_network
def test_including_everything_is_the_default(surgery, network):
    model = network.build()
    assert surgery.plan(model, include="*") == surgery.plan(model)


@each_surgery
def test_composers_choice_is_a_filter_away(surgery):
    model = torchvision.models.resnet18()
    theirs = copy.deepcopy(model)
    composer_functional.apply_squeeze_excite(theirs, latent_channels=64, min_channels=128)
    expected = [
        n for n, module in theirs.named_modules() if isinstance(module, SqueezeExciteConv2d)
    ]
    plan = surgery.plan(
        model, min_channels=128, filter_fn=lambda name, conv: min(
            conv.in_channels, conv.out_channels) >= 128,
    )  # fmt: skip
    assert list(names(plan.chosen)) == expected
    assert len(expected) == 13
    assert len(surgery.plan(model, min_channels=128).chosen) == 15


@each_surgery
def test_transposed_convolutions_and_linear_layers_are_not_candidates(surgery):
    model = nn.Sequential(nn.ConvTranspose2d(3, 32, 3), nn.Linear(32, 32), nn.Conv2d(32, 32, 1))
    assert names(surgery.plan(model).sites) == ("2",)
