"""Every placement on every kind of residual network: attend, copy, train, detach."""

import copy
import importlib
from functools import cache

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from composer_attn.functional import attended_modules, detach_attention
from composer_attn.surgery.stand_ins import Shortcut
from tests import snapshots
from tests.surgeries import attention_keys, each_surgery, names, train_step

PLACEMENTS = ("norm", "residual", "pre", "post", "identity")
# By how many points of a placement they have, in that order: a norm for each convolution (outside
# of squeeze-and-excitation), the rest by blocks, of which some have no shortcut.
NETWORKS = {
    "resnet18": (20, 8, 8, 8, 8),
    "mobilenet_v2": (52, 17, 17, 17, 10),
    "efficientnet_b0": (49, 16, 16, 16, 9),
    "convnext": (0, 3, 3, 3, 3),
    "regnet_y_400mf": (53, 16, 16, 16, 16),
    "mnasnet0_5": (52, 16, 16, 16, 10),
}
CASES = [
    (name, placement, count)
    for name, counts in NETWORKS.items()
    for placement, count in zip(PLACEMENTS, counts, strict=True)
    if count
]
each_case = pytest.mark.parametrize(("name", "placement", "count"), CASES)
operating = importlib.import_module("composer_attn.functional.apply")


@cache
def built(name):
    if name == "convnext":
        stages = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)]
        network = models.ConvNeXt(stages, num_classes=10)
    else:
        network = models.get_model(name, weights=None, num_classes=10)
    for key, parameter in network.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.ones_(parameter)  # torchvision's hides the branch
    for module in network.modules():
        if isinstance(module, nn.Dropout | models.convnext.StochasticDepth):
            module.p = 0.0
    return network.eval()


def build(name):
    return copy.deepcopy(built(name))


def images():
    return torch.randn(3, 3, 32, 32)


def apply(surgery, network, placement, **options):
    return surgery.apply(network, min_channels=1, placement=placement, **options)


def places(network):
    """Return the attributes and children of each module, in their order."""
    return {n: (type(m), set(vars(m)), list(m._modules)) for n, m in network.named_modules()}


@each_surgery
@each_case
def test_the_plan_is_carried_out_once(surgery, name, placement, count):
    network = build(name)
    before = snapshots.of_model(network)
    planned = surgery.plan(network, min_channels=1, placement=placement)
    assert snapshots.of_model(network) == before
    assert apply(surgery, network, placement) == planned
    assert tuple(attended_modules(network)) == names(planned.chosen)
    assert len(planned.chosen) == count
    assert planned.parameters == sum(
        p.numel() for a in attended_modules(network).values() for p in a.parameters()
    )
    attended = snapshots.of_model(network)
    again = apply(surgery, network, placement)
    assert not again.chosen
    assert names(s for s in again.sites if s.reason == "already attended") == names(planned.chosen)
    assert snapshots.of_model(network) == attended


@each_surgery
@each_case
@torch.no_grad()
def test_given_back_and_copied_it_computes_the_same(surgery, name, placement, count, tmp_path):
    network, x = build(name), images()
    before, keys, kept = network(x), list(network.state_dict()), places(network)
    apply(surgery, network, placement)
    attended = network(x)
    assert attended.isfinite().all()
    assert not torch.equal(attended, before)

    # Plain weights, of before surgery.
    missing, unexpected = network.load_state_dict(built(name).state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == attention_keys(network.state_dict()) != set()

    torch.save(network, tmp_path / "network.pt")
    from_file = torch.load(tmp_path / "network.pt", weights_only=False)
    for duplicate in (copy.deepcopy(network), from_file):
        assert torch.equal(duplicate(x), attended)
        detach_attention(duplicate)
        assert torch.equal(duplicate(x), before)
        assert places(duplicate) == kept

    detach_attention(network)
    assert places(network) == kept
    assert list(network.state_dict()) == keys
    assert not any(isinstance(module, Shortcut) for module in network.modules())
    network.load_state_dict(built(name).state_dict())
    assert torch.equal(network(x), before)


@each_surgery
@each_case
def test_an_identity_start_changes_no_bit_and_every_attention_learns(
    surgery, name, placement, count
):
    network, x = build(name), images()
    with torch.no_grad():
        before = network(x)
        apply(surgery, network, placement, start="identity")
        assert torch.equal(network(x), before)
        detach_attention(network)
    apply(surgery, network, placement)
    output = network.train()(x)
    (output * torch.randn_like(output)).sum().backward()
    for site, attention in attended_modules(network).items():
        for parameter in attention.parameters():
            assert parameter.grad is not None, site
            assert parameter.grad.isfinite().all(), site
            assert parameter.grad.any(), site


@each_surgery
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["resnet18", "mnasnet0_5"])
def test_optimizers_follow(surgery, name, placement):
    network = build(name).train()
    named = list(network.named_parameters())
    early = [(n, p) for n, p in named if n.startswith(("conv1", "bn1", "layer1", "layers.8"))]
    late = [(n, p) for n, p in named if n not in dict(early)]
    optimizer = torch.optim.SGD(
        [{"params": early, "lr": 0.1}, {"params": late, "lr": 0.01}], momentum=0.9
    )
    before = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    apply(surgery, network, placement, optimizers=optimizer)
    joined = {}
    for group, (first, *_) in zip(optimizer.param_groups, (early, late), strict=True):
        assert first[0] in group["param_names"]
        joined.update(zip(group["param_names"], map(id, group["params"]), strict=True))
    assert joined == {n: id(p) for n, p in network.named_parameters()}
    early_names, _ = (group["param_names"] for group in optimizer.param_groups)
    for site in attended_modules(network):
        beside = site.startswith(("conv1", "bn1", "layer1", "layers.8"))
        found = any(n.startswith(f"{site}.attention.") for n in early_names)
        assert found == beside, site
    train_step(network, optimizer, images())
    assert all(p in optimizer.state for p in network.parameters())
    detach_attention(network, optimizers=optimizer)
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == before


class LateFailureError(Exception):
    pass


@each_surgery
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("step", ["attend", "occupy", "join"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_failure_leaves_everything_as_it_was(surgery, placement, step, when, at, monkeypatch):
    if step == "occupy" and placement != "identity":
        return
    network = build("resnet18")
    optimizer = torch.optim.Adam(network.named_parameters())
    before, kept = snapshots.of_optimizer(optimizer), places(network)
    weights = snapshots.frozen(network.state_dict())
    real, calls = getattr(operating, step), []

    def failing(*args):
        calls.append(args)
        if len(calls) > at and when == "before":
            raise LateFailureError
        real(*args)
        if len(calls) > at:
            raise LateFailureError

    with monkeypatch.context() as patched:
        patched.setattr(operating, step, failing)
        with pytest.raises(LateFailureError):
            apply(surgery, network, placement, optimizers=optimizer)
    assert len(calls) == at + 1
    assert places(network) == kept
    assert snapshots.of_optimizer(optimizer) == before
    assert snapshots.frozen(network.state_dict()) == weights
    assert network.layer1[0].downsample is None
    assert apply(surgery, network, placement, optimizers=optimizer).chosen


class Holding(nn.Module):
    """A block whose missing shortcut is kept as a plain attribute, or as a child that is None."""

    def __init__(self, child: bool):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1)
        if not child:
            del self.shortcut
        self.shortcut = None
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


@each_surgery
@pytest.mark.parametrize("child", [True, False], ids=["child", "attribute"])
def test_none_is_restored_where_it_was(surgery, child, monkeypatch):
    from composer_attn import register_block
    from composer_attn.surgery import blocks

    monkeypatch.setattr(blocks, "_registered", {})
    register_block(Holding, first="conv", last="conv", shortcut="shortcut")
    network = nn.Sequential(Holding(child))
    assert ("shortcut" in network[0]._modules) == child
    kept, x = places(network), torch.randn(2, 8, 5, 5)
    before = network(x)
    plan = apply(surgery, network, "identity")
    assert names(plan.chosen) == ("0.shortcut",)
    assert not torch.equal(network(x), before)
    detach_attention(network)
    assert places(network) == kept
    assert network[0].shortcut is None
    assert torch.equal(network(x), before)


@each_surgery
def test_one_norm_that_follows_several_convolutions_is_attended_once(surgery):
    norm = nn.BatchNorm2d(8)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), norm), nn.Sequential(nn.Conv2d(8, 8, 3), norm)
    )
    plan = apply(surgery, network, "norm")
    assert names(plan.chosen) == tuple(attended_modules(network)) == ("0.1",)
    detach_attention(network)
    assert type(norm) is nn.BatchNorm2d
