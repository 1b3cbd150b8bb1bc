"""Convolutions inside an attention that is already there are passed over, whatever its origin."""

import pytest
import torchvision
from composer import functional as composer_functional
from composer.algorithms.squeeze_excite import SqueezeExcite2d
from timm.layers import create_attn
from timm.models._efficientnet_blocks import SqueezeExcite as TimmSqueezeExcite
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional import attended_modules
from tests.networks import NETWORKS
from tests.surgeries import SURGERIES, each_surgery, names

# All that timm's create_attn supports, except "ge" (whose default arguments timm cannot build).
TIMM = [
    "se", "ese", "eca", "ecam", "ceca", "gc", "gca", "cbam", "lcbam", "sk", "splat", "lambda",
    "bottleneck", "halo", "nl", "bat", "coord", "scoord", "ela", "strip",
]  # fmt: skip


def timm_attention(kind):
    options = {"feat_size": 8} if kind in ("lambda", "bottleneck", "halo") else {}
    return create_attn(kind, 64, **options)


BUILDERS = {
    **{f"timm-{kind}": lambda kind=kind: timm_attention(kind) for kind in TIMM},
    "timm-efficientnet": lambda: TimmSqueezeExcite(64),
    "torchvision": lambda: torchvision.ops.SqueezeExcitation(64, 16),
    "torchvision-mobilenetv3": lambda: torchvision.models.quantization.mobilenetv3
    .QuantizableSqueezeExcitation(64, 16),
    "composer": lambda: SqueezeExcite2d(64),
    "our-eca": lambda: EfficientChannelAttention(64),
    "our-squeeze-excitation": lambda: SqueezeExcitation(64),
}  # fmt: skip
each_foreign = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)


@each_surgery
@each_foreign
def test_only_convolutions_outside_are_attended(surgery, build):
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Sequential(build()), nn.Conv2d(64, 64, 1))
    kind = type(model[1][0]).__name__
    plan = surgery.apply(model, min_channels=1)
    assert names(plan.chosen) == ("0", "2")
    assert {site.reason for site in plan.passed_over} <= {f"inside {kind} '1.0'"}
    assert tuple(attended_modules(model)) == ("0", "2")


@each_surgery
@each_foreign
def test_an_attention_as_the_whole_model_is_unchanged(surgery, build):
    with pytest.warns(NothingAttendedWarning):
        plan = surgery.apply(build(), min_channels=1)
    assert plan.chosen == ()


def test_some_of_these_hold_convolutions():
    held = [any(isinstance(m, nn.Conv2d) for m in build().modules()) for build in BUILDERS.values()]
    assert sum(held) > 12


@each_surgery
def test_a_convolution_that_one_of_its_names_puts_inside_is_passed_over(surgery):
    model = nn.ModuleDict({"conv": nn.Conv2d(64, 64, 1), "se": timm_attention("se")})
    model["se"].fc1 = model["conv"]
    plan = surgery.plan(model)
    assert [(site.name, site.reason) for site in plan.sites if site.name == "conv"] == [
        ("conv", "inside SEModule 'se'")
    ]


@each_surgery
@pytest.mark.parametrize("other", SURGERIES.values(), ids=SURGERIES)
def test_attentions_of_ours_hold_no_candidates(surgery, other):
    model = NETWORKS["resnet"].build()
    first = surgery.apply(model)
    again = other.plan(model, min_channels=1)
    assert names(again.sites) == names(first.sites)
    by = "" if other is surgery else f" by {surgery.attention.__name__}"
    assert {site.reason for site in again.sites} == {f"already attended{by}"}


@each_surgery
def test_a_model_after_composers_own_surgery_is_not_attended_on_top(surgery):
    model, x = NETWORKS["resnet"].build(), NETWORKS["resnet"].batch()
    composer_functional.apply_squeeze_excite(model, latent_channels=16, min_channels=128)
    plan = surgery.apply(model)
    theirs = {
        f"{name}.conv"
        for name, module in model.named_modules()
        if type(module).__name__ == "SqueezeExciteConv2d"
    }
    reasons = {site.name: site.reason for site in plan.sites}
    assert len(theirs) == 7
    assert {reasons[name] for name in theirs} == {
        f"inside SqueezeExciteConv2d {name.removesuffix('.conv')!r}" for name in theirs
    }
    assert set(names(plan.chosen)) == {
        n for n in NETWORKS["resnet"].sites if f"{n}.conv" not in theirs
    }
    assert model(x).shape == (2, 10)
