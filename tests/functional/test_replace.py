"""A network's own attention is replaced by ours, restored, or removed for good."""

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from composer import functional as composer_functional
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.errors import (
    ArgumentError,
    ModelError,
    NothingAttendedWarning,
    OptimizerError,
    PatternError,
    PlacementError,
)
from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    detach_attention,
    plan_eca,
    remove_attention,
)
from tests import snapshots
from tests.functional.test_foreign_attention import TIMM, timm_attention
from tests.own_attention import Block, count, own_attentions, with_se
from tests.surgeries import SURGERIES, each_surgery, names

# Those of timm's create_attn that do more than rescale channels.
FIXED = {"sk", "splat", "lambda", "bottleneck", "halo"}
RESCALING_KINDS = [kind for kind in TIMM if kind not in FIXED]


def test_efficientnet_b0_becomes_eca_b0():
    model = torchvision.models.efficientnet_b0()
    plan = apply_eca(model, replace=True)
    assert (len(plan.chosen), plan.parameters, count(model)) == (16, 76, 4_652_084)
    assert not any(type(m).__name__ == "SqueezeExcitation" for m in model.modules())
    detach_attention(model)
    assert count(model) == 5_288_548


def test_efficientnet_b0_without_attention():
    model = torchvision.models.efficientnet_b0()
    removed = remove_attention(model)
    assert count(model) == 4_652_008
    assert sum(count(m) for m in removed.values()) == 636_540
    assert {type(m).__name__ for m in removed.values()} == {"SqueezeExcitation"}
    for name in removed:
        assert type(model.get_submodule(name)) is nn.Identity


@each_surgery
@pytest.mark.parametrize("kind", RESCALING_KINDS)
def test_every_rescaling_attention_of_timm_is_replaced(surgery, kind):
    torch.manual_seed(0)
    model, x = Block(timm_attention(kind)).eval(), torch.randn(2, 3, 7, 7)
    before, own, outputs = snapshots.of_model(model), model.own, model(x)
    plan = surgery.apply(model, replace=True, min_channels=1)
    assert [(s.name, s.kind, s.channels) for s in plan.chosen] == [("own", type(own).__name__, 64)]
    attention = attended_modules(model)["own"]
    assert type(attention) is surgery.attention
    middle = model.act(model.norm(model.conv(x)))
    torch.testing.assert_close(model(x), model.last(attention(middle)), rtol=0, atol=0)
    detach_attention(model)
    assert snapshots.of_model(model) == before
    assert model.own is own
    torch.testing.assert_close(model(x), outputs, rtol=0, atol=0)


@pytest.mark.parametrize("kind", sorted(FIXED))
def test_what_does_more_than_rescale_stays_and_is_named(kind):
    model = Block(timm_attention(kind))
    before = snapshots.of_model(model)
    with pytest.raises(PlacementError, match=rf"It has own \({type(model.own).__name__}\)"):
        apply_eca(model, replace=True)
    with pytest.warns(NothingAttendedWarning):
        assert remove_attention(model) == {}
    assert snapshots.of_model(model) == before


@each_surgery
def test_composers_squeeze_excite_is_replaced(surgery):
    model = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU())
    composer_functional.apply_squeeze_excite(model, latent_channels=16, min_channels=64)
    plan = surgery.apply(model, replace=True)
    assert [(s.name, s.kind, s.channels) for s in plan.chosen] == [("0.se", "SqueezeExcite2d", 64)]
    assert "its block needs it" in plan.passed_over[0].reason
    assert model(torch.randn(2, 64, 4, 4)).shape == (2, 64, 4, 4)


@pytest.mark.parametrize("name", ["seresnet18", "ecaresnet26t", "mobilenetv3_small_050"])
def test_networks_of_timm_swap_one_attention_for_another(name):
    zero = {} if name.startswith("mobile") else {"zero_init_last": False}
    model = timm.create_model(name, num_classes=10, **zero).eval()
    x = torch.randn(1, 3, 64, 64)
    before, outputs = snapshots.of_model(model), model(x)
    plain = count(model) - sum(count(m) for m in own_attentions(model).values())
    plan = apply_squeeze_excite(model, 1 / 16, replace=True)
    assert len(plan.chosen) == len(attended_modules(model)) > 0
    assert count(model) == plain + plan.parameters
    assert not torch.equal(model(x), outputs)
    detach_attention(model)
    assert snapshots.of_model(model) == before
    assert torch.equal(model(x), outputs)


@each_surgery
def test_min_channels_is_whatever_is_there_unless_given(surgery):
    model = Block(torchvision.ops.SqueezeExcitation(64, 16))
    assert len(surgery.planning(model, replace=True, **surgery.arguments).chosen) == 1
    with pytest.warns(NothingAttendedWarning):
        plan = surgery.apply(model, replace=True, min_channels=65)
    assert plan.passed_over[0].reason == "fewer channels than min_channels=65"


@each_surgery
def test_patterns_choose_among_them(surgery):
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    plan = surgery.apply(
        model, replace=True, min_channels=1, include="features.1*", exclude="*.10.*"
    )
    assert all(name.startswith("features.1") for name in names(plan.chosen))
    assert {"in exclude", "not in include"} == {site.reason for site in plan.passed_over}
    with pytest.raises(PatternError, match=r"include pattern 'layer1\.\*' matches none of 9"):
        surgery.plan(torchvision.models.mobilenet_v3_small(), replace=True, include="layer1.*")


@each_surgery
def test_twice_is_once_and_the_other_kind_changes_nothing(surgery):
    model, _ = with_se()
    surgery.apply(model, replace=True)
    before = snapshots.of_model(model)
    assert [site.reason for site in surgery.apply(model, replace=True).sites] == [
        "already attended"
    ]
    (other,) = (s for s in SURGERIES.values() if s is not surgery)
    reason = f"already attended by {surgery.attention.__name__}"
    with pytest.warns(NothingAttendedWarning, match=rf"nothing was attended: {reason} \(1\)"):
        plan = other.apply(model, replace=True)
    assert [site.reason for site in plan.sites] == [reason]
    assert snapshots.of_model(model) == before


@each_surgery
def test_attention_of_ours_is_not_the_networks_own(surgery):
    model = nn.Sequential(nn.Conv2d(3, 64, 1))
    surgery.apply(model)
    with pytest.raises(PlacementError, match="Sequential has no attention of its own"):
        surgery.apply(model, replace=True)


@each_surgery
def test_our_attention_in_a_networks_definition_counts_as_its_own(surgery):
    model = nn.Sequential(nn.Conv2d(3, 64, 1), SqueezeExcitation(64))
    plan = surgery.apply(model, replace=True)
    assert names(plan.chosen) == ("1",)


@each_surgery
def test_a_shared_attention_is_one_site(surgery):
    shared = torchvision.ops.SqueezeExcitation(64, 16)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), shared, nn.Conv2d(64, 64, 1), shared)
    before = snapshots.of_model(model)
    plan = surgery.apply(model, replace=True)
    assert names(plan.chosen) == ("1",)
    assert model[1] is model[3]
    assert model[1] is not shared
    detach_attention(model)
    assert snapshots.of_model(model) == before


@each_surgery
def test_the_whole_model_cannot_be_replaced(surgery):
    model = torchvision.ops.SqueezeExcitation(64, 16)
    with pytest.warns(NothingAttendedWarning):
        plan = surgery.apply(model, replace=True)
    assert plan.sites[0].reason == "it is the whole model"


@each_surgery
def test_new_attention_has_device_dtype_and_mode_of_the_old(surgery):
    model = Block(torchvision.ops.SqueezeExcitation(64, 16)).double().eval()
    surgery.apply(model, replace=True)
    attention = attended_modules(model)["own"]
    assert {p.dtype for p in attention.parameters()} == {torch.float64}
    assert not attention.training
    model.float().train()
    detach_attention(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(module.training for module in model.modules())


@each_surgery
def test_copies_and_pickles_keep_the_way_back(surgery):
    model, x = with_se()
    model.eval()
    outputs, keys = model(x), list(model.state_dict())
    surgery.apply(model, replace=True)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ]
    for other in copies:
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        detach_attention(other)
        assert list(other.state_dict()) == keys
        torch.testing.assert_close(other(x), outputs, rtol=0, atol=0)
    assert list(attended_modules(model)) == ["own"]


@each_surgery
def test_exports(surgery):
    model, x = with_se()
    surgery.apply(model.eval(), replace=True)
    expected = model(x)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


def test_removal_by_pattern_and_its_exports():
    model = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    x = torch.randn(1, 3, 32, 32)
    assert all(name.startswith("features.1.") for name in remove_attention(model, include="*.1.*"))
    assert len(remove_attention(model)) == 8
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
    with pytest.warns(NothingAttendedWarning, match="no attention of its own"):
        assert remove_attention(model) == {}


def test_removal_leaves_attention_of_ours():
    model, x = with_se()
    apply_eca(model, min_channels=64)
    assert list(remove_attention(model)) == ["own"]
    assert list(attended_modules(model)) == ["conv"]
    assert model(x).shape == (2, 8, 8, 8)


BAD = {
    "nothing": (lambda: nn.Sequential(nn.Conv2d(3, 64, 1)), {}, PlacementError, "looked for"),
    "near": (
        lambda: nn.Sequential(type("SEModul", (nn.Identity,), {})()),
        {},
        PlacementError,
        "Closest matches: SEModul$",
    ),
    "placement": (lambda: with_se()[0], {"placement": "post"}, ArgumentError, "placement='post'"),
    "no bool": (lambda: with_se()[0], {"replace": "yes"}, ArgumentError, "replace must be True"),
    "pattern": (lambda: with_se()[0], {"include": "x.*"}, PatternError, "near names: own"),
    "compiled": (lambda: torch.compile(with_se()[0]), {}, ModelError, "OptimizedModule"),
    "optimizer": (
        lambda: with_se()[0],
        {"optimizers": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)},
        OptimizerError,
        "own",
    ),
}


@each_surgery
@pytest.mark.parametrize(("build", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_changes_nothing(surgery, build, options, error, message):
    model = build()
    before = snapshots.of_model(model)
    for call in (surgery.plan, surgery.apply):
        with pytest.raises(error, match=message):
            call(model, **{"replace": True, **options})
    assert snapshots.of_model(model) == before


def test_a_plan_of_replacing_changes_nothing():
    model, _ = with_se()
    before = snapshots.of_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(plan_eca(model, replace=True).chosen[0].name) is str
    assert snapshots.of_model(model) == before
    assert EfficientChannelAttention.__name__ == plan_eca(model, replace=True).attention
