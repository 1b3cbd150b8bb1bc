"""Published networks with built-in attention compute the same when it is fused."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from benchmarks.common import saved_bytes
from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention, unfuse_attention
from tests.fusion.own_networks import assert_same, everything, randomized

# How many attentions of its own a network has that are known, and how many of them are fused.
TORCHVISIONS = {
    "efficientnet_b0": (16, 16),
    "efficientnet_b1": (23, 23),
    "efficientnet_v2_s": (30, 30),
    "mobilenet_v3_small": (9, 9),
    "mobilenet_v3_large": (8, 8),
    "regnet_y_400mf": (16, 16),
    "regnet_y_800mf": (14, 14),
    "regnet_y_1_6gf": (27, 27),
}
TIMMS = {
    "efficientnet_b0": (16, 16),
    "efficientnet_b1_pruned": (23, 23),
    "tf_efficientnet_b0": (16, 16),
    "tf_efficientnetv2_b0": (16, 16),
    "efficientnet_cc_b0_4e": (16, 16),
    "mixnet_s": (13, 13),
    "tf_mixnet_s": (13, 13),
    "mnasnet_small": (10, 10),
    "semnasnet_050": (8, 8),
    "rexnet_100": (13, 0),
    "fbnetv3_b": (18, 18),
    "hardcorenas_a": (8, 8),
    "mobilenetv3_small_050": (9, 9),
    "mobilenetv3_large_100": (8, 8),
    "lcnet_050": (2, 2),
    "tinynet_e": (10, 10),
    "ghostnet_100": (7, 2),
    "repghostnet_050": (7, 2),
    "regnety_002": (13, 13),
    "regnety_004": (16, 16),
    "regnetz_005": (21, 21),
    "seresnet18": (8, 8),
    "seresnet34": (16, 16),
    "seresnet33ts": (10, 10),
    "seresnext26t_32x4d": (8, 8),
    "seresnext26ts": (8, 8),
    "legacy_seresnet18": (8, 8),
    "legacy_seresnext26_32x4d": (8, 8),
    "ecaresnet26t": (8, 8),
    "ecaresnetlight": (16, 16),
    "eca_resnet33ts": (10, 10),
    "eca_resnext26ts": (8, 8),
    "ese_vovnet19b_dw": (4, 4),
    "ese_vovnet39b": (4, 4),
    "repvit_m0_9": (10, 10),
    "mobileone_s4": (12, 0),
}
NETWORKS = {
    **{name: (torchvision.models.get_model, name, row) for name, row in TORCHVISIONS.items()},
    **{f"timm {name}": (timm.create_model, name, row) for name, row in TIMMS.items()},
}
assert len(NETWORKS) >= 40


def build(make, name) -> nn.Module:
    """Build a network that draws no random numbers, none of whose branches starts at zero."""
    torch.manual_seed(0)
    model = randomized(make(name)).double()
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    if hasattr(model, "drop_rate"):
        model.drop_rate = 0.0
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("make", "name", "counts"), NETWORKS.values(), ids=NETWORKS)
def test_a_published_network_agrees_fused(make, name, counts):
    plain = build(make, name)
    fused = copy.deepcopy(plain)
    plan = fuse_attention(fused, "reference", norms=True)
    assert (len(plan.sites), len(plan.fused)) == counts
    assert plan.norms
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, fused.state_dict().values(), plain.state_dict().values()))
    # Few positions are left for the last norms, and drawn statistics let maps grow: rounding does.
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for training in (False, True):
        expected, found = (everything(m.train(training), x) for m in (plain, fused))
        assert_same(found, expected, 1e-7 if training else 1e-8)
    fused.load_state_dict(plain.state_dict())
    assert unfuse_attention(fused) == [site.name for site in plan.fused]
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in fused.modules()] == [vars(m).keys() for m in plain.modules()]


def kept(model: nn.Module, **fusion) -> float:
    """Count what is kept for backward, fused as told, as a share of what was kept before."""
    x = torch.randn(8, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    model = model.train().to(memory_format=torch.channels_last)
    before = saved_bytes(model, lambda: model(x).sum())
    fuse_attention(model, "reference", **fusion)
    return saved_bytes(model, lambda: model(x).sum()) / before


@pytest.mark.parametrize(
    ("name", "own", "all_norms", "recomputed", "all_recomputed"),
    [
        ("efficientnet_b0", 0.80, 0.62, 0.69, 0.35),
        ("mobilenet_v3_large", 0.92, 0.82, 0.86, 0.47),
        ("regnet_y_400mf", 0.92, 0.92, 0.82, 0.58),
    ],
)
def test_less_is_kept_for_backward(name, own, all_norms, recomputed, all_recomputed):
    assert kept(torchvision.models.get_model(name)) <= own
    assert kept(torchvision.models.get_model(name), norms=True) <= all_norms
    assert kept(torchvision.models.get_model(name), recompute=True) <= recomputed
    again = {"norms": True, "recompute": True}
    assert kept(torchvision.models.get_model(name), **again) <= all_recomputed


def test_our_attention_in_place_of_its_own_saves_as_little():
    model = torchvision.models.efficientnet_b0()
    apply_eca(model, replace=True)
    assert len(fuse_attention(model, "reference").fused) == 16
    unfuse_attention(model)
    assert kept(model) <= 0.80


def test_mobilenet_v2_with_attention_keeps_less_than_without():
    x = torch.randn(2, 3, 128, 128)
    model = torchvision.models.mobilenet_v2().train()
    plain = saved_bytes(model, lambda: model(x).sum())
    apply_squeeze_excite(model, 64, 128)
    plan = fuse_attention(model, "reference")
    assert (len(plan.sites), len(plan.fused)) == (35, 35)
    assert {site.function for site in plan.fused} == {"", "relu6"}
    assert saved_bytes(model, lambda: model(x).sum()) / plain <= 0.82
    fuse_attention(model, "reference", norms=True)
    assert saved_bytes(model, lambda: model(x).sum()) / plain <= 0.71
    fuse_attention(model, "reference", recompute=True)
    assert saved_bytes(model, lambda: model(x).sum()) / plain <= 0.63
    fuse_attention(model, "reference", norms=True, recompute=True)
    assert saved_bytes(model, lambda: model(x).sum()) / plain <= 0.40
