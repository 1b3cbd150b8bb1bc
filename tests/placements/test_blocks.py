"""The table of residual blocks, the blocks of users, and those that are found by tracing."""

from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.video import resnet as video

from composer_attn import register_block
from composer_attn.errors import ArgumentError, ModelError, PlacementError
from composer_attn.functional import apply_eca, attended_modules, detach_attention, plan_eca
from composer_attn.surgery import blocks
from composer_attn.surgery.block_tracing import traced_block
from tests import snapshots

TORCHVISION = (
    "resnet18", "resnet50", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small",
    "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "mnasnet0_5",
)  # fmt: skip
TIMM = (
    "resnet18", "resnet50", "res2net50_26w_4s", "resnest14d", "regnetx_002", "gernet_s",
    "efficientnet_b0", "efficientnetv2_rw_t", "mobilenetv3_large_100", "convnext_atto",
)  # fmt: skip
# The forward of Res2Net's block depends on its data's pieces; ConvNeXt multiplies by its layer
# scale between the branch's last child, or last with channels, and the addition.
UNTRACED = {
    "timm.models.res2net.Bottle2neck",
    "timm.models.convnext.ConvNeXtBlock",
    "torchvision.models.convnext.CNBlock",
}


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    monkeypatch.setattr(blocks, "_registered", {})


@cache
def instances():
    """Find blocks of the table in real networks, by class name; all of those that differ."""
    found = {}
    with torch.device("meta"):
        networks = [timm.create_model(name, pretrained=False) for name in TIMM]
        networks += [models.get_model(n, weights=None) for n in TORCHVISION if "regnet" not in n]
        stages = [video.Conv3DSimple] * 4
        for block in (video.BasicBlock, video.Bottleneck):
            networks.append(video.VideoResNet(block, stages, [1, 1, 1, 1], video.BasicStem))
    # RegNet computes its widths with tensors, which have no values on the meta device.
    networks.append(models.regnet_y_400mf())
    for network in networks:
        for module in network.modules():
            found.setdefault(f"{type(module).__module__}.{type(module).__qualname__}", [])
            found[f"{type(module).__module__}.{type(module).__qualname__}"].append(module)
    return found


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_the_table_names_children_that_real_blocks_have_and_agrees_with_their_forward(name):
    row, found = blocks.BLOCKS[name], instances()[name]
    traced = [(module, traced_block(module)) for module in found]
    for module, trace in traced:
        assert module.get_submodule(row.first) is not None
        assert module.get_submodule(row.last) is not None
        assert not row.shortcut or hasattr(module, row.shortcut)
        assert not row.has_shortcut or hasattr(module, row.has_shortcut)
        if trace is None:
            assert name in UNTRACED or not getattr(module, row.has_shortcut)
            continue
        assert (trace.first, trace.last) == (row.first, row.last)
        assert trace.adds_last == row.adds_last
        present = row.shortcut and getattr(module, row.shortcut) is not None
        assert trace.shortcut == (row.shortcut if present else "")
    assert any(trace for _, trace in traced) == (name not in UNTRACED)


class Block(nn.Module):
    """What the blocks below are made of."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.0)
        self.act = nn.ReLU()

    def branch(self, x):
        return self.conv2(self.act(self.conv1(x)))


class FunctionalAfter(Block):
    def forward(self, x):
        return F.relu(x + self.branch(x))


class InPlace(Block):
    def forward(self, x):
        y = self.branch(x)
        y += x
        return y


class TorchAdd(Block):
    def forward(self, x):
        return torch.add(self.branch(x), x)


class AddMethod(Block):
    def forward(self, x):
        return self.branch(x).add_(x)


class Dropping(Block):
    def forward(self, x):
        return x + self.drop(self.branch(x))


class ModuleAfter(Block):
    def forward(self, x):
        return self.act(self.branch(x) + x)


class PreActivation(Block):
    def __init__(self, project=False):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        if project:
            self.shortcut = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = self.shortcut(y) if hasattr(self, "shortcut") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        y += shortcut
        return y


class Untraceable(Block):
    def forward(self, x):
        return x + self.branch(x) if x.mean() > -9 else x


class Ambiguous(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Counting(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.last = x
        return x + self.branch(x)


# (block, first, last, what identity attends: a child, the block itself, or nothing)
HOMEMADE = {
    "function after": (FunctionalAfter, "conv1", "conv2", None),
    "in place": (InPlace, "conv1", "conv2", ""),
    "torch.add": (TorchAdd, "conv1", "conv2", ""),
    "method": (AddMethod, "conv1", "conv2", ""),
    "dropout": (Dropping, "conv1", "conv2", ""),
    "module after": (ModuleAfter, "conv1", "conv2", None),
    "pre-activation": (PreActivation, "bn1", "conv2", ""),
    "pre-activation, projected": (lambda: PreActivation(True), "bn1", "conv2", "shortcut"),
    "counting": (Counting, "conv1", "conv2", ""),
}


@pytest.mark.parametrize(("build", "first", "last", "identity"), HOMEMADE.values(), ids=HOMEMADE)
@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
@pytest.mark.filterwarnings("ignore:nothing was attended")
def test_unknown_blocks_are_found_by_tracing(build, first, last, identity, placement):
    child = {"residual": last, "pre": first, "post": "", "identity": identity}[placement]
    network = nn.Sequential(nn.Conv2d(3, 8, 1), build()).eval()
    x = torch.randn(2, 3, 7, 7)
    before, expected = snapshots.of_model(network), network[1](network[0](x)).detach()
    network[1].calls = torch.zeros(()) if isinstance(network[1], Counting) else None
    before = snapshots.of_model(network)
    plan = apply_eca(network, min_channels=1, placement=placement)
    if child is None:
        assert [s.reason for s in plan.sites] == [
            "its shortcut has no module, and something follows the addition"
        ]
        return
    assert list(attended_modules(network)) == [f"1.{child}".rstrip(".")]
    assert network(x).shape == expected.shape
    assert not torch.equal(network(x), expected)
    assert not apply_eca(network, min_channels=1, placement=placement).chosen
    detach_attention(network)
    if isinstance(network[1], Counting):
        network[1].calls.zero_()
        network[1].last = None
        assert snapshots.frozen(network.state_dict()) == before[2]
    else:
        assert snapshots.of_model(network) == before
    assert torch.equal(network(x), expected)


def test_planning_has_no_side_effects():
    network = nn.Sequential(Counting())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    plan_eca(network, min_channels=1, placement="residual")
    assert network[0].calls == 0
    assert network[0].last is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("block", "why"), [(Untraceable, "control flow"), (Ambiguous, "it is ambiguous")]
)
def test_a_block_that_cannot_be_traced_is_named_with_the_way_to_describe_it(block, why):
    network = nn.Sequential(block())
    before = snapshots.of_model(network)
    with pytest.raises(PlacementError, match=why) as caught:
        apply_eca(network, min_channels=1, placement="residual")
    assert f"{block.__module__}.{block.__qualname__}: " in str(caught.value)
    assert "composer_attn.register_block(cls, first=, last=" in str(caught.value)
    assert snapshots.of_model(network) == before


@pytest.mark.parametrize(
    ("placement", "site"),
    [("residual", "0.conv2"), ("pre", "0.conv1"), ("post", "0"), ("identity", "0")],
)
def test_registered_blocks_are_known_and_so_are_their_subclasses(placement, site):
    class Special(Untraceable):
        pass

    register_block(Untraceable, first="conv1", last="conv2", adds_last=True)
    network = nn.Sequential(Special())
    apply_eca(network, min_channels=1, placement=placement)
    assert list(attended_modules(network)) == [site]
    assert network(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


@pytest.mark.parametrize("cls", [Untraceable(), int, "Block", None])
def test_only_module_classes_can_be_registered(cls):
    with pytest.raises(ArgumentError, match=r"register_block takes a class of torch\.nn\.Module"):
        register_block(cls, first="conv1", last="conv2")


@pytest.mark.parametrize("wrong", [{"first": "conv"}, {"last": "norm"}])
def test_a_described_child_that_is_not_there_is_an_error_with_those_that_are(wrong):
    register_block(Untraceable, **{"first": "conv1", "last": "conv2", **wrong})
    with pytest.raises(PlacementError, match=r"Untraceable is .* conv1, conv2, drop, act"):
        apply_eca(nn.Sequential(Untraceable()), min_channels=1, placement="residual")


@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
def test_a_network_without_blocks_has_no_place_and_the_error_says_which_placements_it_has(
    placement,
):
    with torch.device("meta"):
        network = models.vgg11()
    with pytest.raises(PlacementError, match=r"VGG has none .*; placement='conv' and 'norm' need"):
        plan_eca(network, placement=placement)


@pytest.mark.parametrize("placement", ["Residual", "", None, 3])
def test_an_unknown_placement_is_an_error_that_lists_them(placement):
    with pytest.raises(ArgumentError, match="one of conv, norm, residual, pre, post, identity"):
        plan_eca(nn.Conv2d(3, 8, 1), placement=placement)


def test_after_norms_a_convolution_without_one_is_passed_over():
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU(),
            nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4),
        )  # fmt: skip
    plan = plan_eca(network, min_channels=8, placement="norm", exclude="4")
    assert [(site.name, site.reason) for site in plan.sites] == [
        ("1", ""),
        ("2", "no norm follows it"),
        ("5", "in exclude"),
        ("7", "fewer channels than min_channels=8"),
    ]


def test_a_block_with_an_attribute_named_attention_is_refused_after_the_block():
    network = nn.Sequential(InPlace())
    network[0].attention = "mine"
    with pytest.raises(ModelError, match="already has an attribute named 'attention'"):
        apply_eca(network, min_channels=1, placement="post")
