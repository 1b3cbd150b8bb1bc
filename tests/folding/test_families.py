"""Classification networks of torchvision and of each family of timm, folded.

Of torchvision's, one for each set of layers in a family: other members repeat these.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from composer_attn import (
    apply_eca,
    apply_squeeze_excite,
    detach_attention,
    fold_norms,
    plan_folding,
    unfold_norms,
)
from composer_attn.folding.fold_plan import FoldPlan
from tests import snapshots
from tests.families import torchvision_networks
from tests.families.breadth import TIMM, Row, build, family_of
from tests.folding.networks import at_random

# One of each family whose images may be small.
ROWS = list({family_of(row): row for row in reversed(TIMM) if row.size[0] <= 224}.values())[::-1]
MEMBERS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_x_8gf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vgg11", "vgg11_bn", "vit_b_32",
)  # fmt: skip
SURGERIES = {
    "se-conv": lambda model: apply_squeeze_excite(model, 1 / 8, min_channels=16),
    "eca-norm": lambda model: apply_eca(model, min_channels=16, placement="norm"),
    "eca-conv": lambda model: apply_eca(model, min_channels=16),
    "se-norm": lambda model: apply_squeeze_excite(model, 8, min_channels=16, placement="norm"),
}


def in_turns(names: list) -> list:
    """Give each network one of the surgeries."""
    labels = list(SURGERIES)
    return [(name, labels[i % len(labels)]) for i, name in enumerate(names)]


def test_sixty_families_of_timm_are_tried():
    assert len(ROWS) >= 60


def layers(model: nn.Module) -> set[tuple[str, ...]]:
    """Describe the layers that folding may meet: in what they are, and what follows them there."""
    found = set()
    for module in model.modules():
        inside = [described(child) for child in module.children()]
        found |= {(type(module).__name__, each) for each in inside}
        if isinstance(module, nn.Sequential):
            found |= {("followed", *pair) for pair in pairwise(inside)}
    return found


def described(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__
    groups = {1: "all", module.in_channels: "each"}.get(module.groups, "some")
    return f"{groups}, bias {module.bias is not None}, wide {module.kernel_size[0] > 1}"


@pytest.mark.slow
def test_all_networks_of_torchvision_have_the_layers_of_those_tried(monkeypatch):
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "trunc_normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda weight, *_, **__: weight)  # takes long
    tried: dict[str, set] = {}
    for name in MEMBERS:
        family = torchvision_networks.family_of(name)
        tried.setdefault(family, set()).update(layers(torchvision_networks.build(name)))
    without_norms = {family for family, found in tried.items() if not norms_of(found)}
    for name in torchvision_networks.MEMBERS:
        family = torchvision_networks.family_of(name)
        if family not in without_norms:
            assert layers(torchvision_networks.build(name)) <= tried[family], name


def norms_of(found: set[tuple[str, ...]]) -> bool:
    return any("BatchNorm" in each for layer in found for each in layer)


@torch.no_grad()
def check(model: nn.Module, x: torch.Tensor, surgery: str, plain: FoldPlan) -> None:
    SURGERIES[surgery](model)
    plan = plan_folding(model)
    # Attention prevents no norm from being folded.
    assert [pair.norm for pair in plan.pairs] == [pair.norm for pair in plain.pairs]
    if not plan.folded:
        with pytest.warns(match="no norm was folded"):
            fold_norms(model)
        return
    state = snapshots.frozen(model.state_dict())
    before = model(x)
    fold_norms(model)
    after = model(x)
    assert before.isfinite().all()
    assert (after - before).abs().max() <= 1e-10 * before.abs().max().clamp(min=1)
    assert len(unfold_norms(model)) == len(plan.folded)
    assert snapshots.frozen(model.state_dict()) == state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composer_attn.errors.NothingAttendedWarning")
@pytest.mark.parametrize("name", MEMBERS)
def test_torchvisions(name):
    model = at_random(torchvision_networks.build(name))
    x = torchvision_networks.images(name)[:1].double()
    plain = plan_folding(model)
    for surgery in SURGERIES:
        check(model, x, surgery, plain)
        detach_attention(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composer_attn.errors.NothingAttendedWarning")
@pytest.mark.parametrize(
    ("row", "surgery"), [pytest.param(r, s, id=f"{r.name}-{s}") for r, s in in_turns(ROWS)]
)
def test_timms(row: Row, surgery):
    model = at_random(build(row))
    x = torch.randn(1, 3, *row.size, dtype=torch.float64)
    check(model, x, surgery, plan_folding(model))
