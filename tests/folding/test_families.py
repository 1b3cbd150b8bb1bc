"""Every classification network of torchvision and one of each family of timm, folded."""

import pytest
import torch
from torch import nn

from composer_attn import apply_eca, apply_squeeze_excite, fold_norms, plan_folding, unfold_norms
from tests import snapshots
from tests.families import torchvision_networks
from tests.families.breadth import TIMM, Row, build, family_of
from tests.folding.networks import at_random

# One of each family whose images may be small.
ROWS = list({family_of(row): row for row in reversed(TIMM) if row.size[0] <= 224}.values())[::-1]
# Of families without batch norms one is enough; and one takes 10 GB in double precision.
_WITHOUT = ("alexnet", "convnext", "squeezenet", "swin_transformer", "vision_transformer")
MEMBERS = [
    name
    for name in torchvision_networks.MEMBERS
    if torchvision_networks.family_of(name) not in _WITHOUT and name != "regnet_y_128gf"
] + [torchvision_networks.FAMILIES[family].member for family in _WITHOUT]
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
    assert len(MEMBERS) >= 60


@torch.no_grad()
def check(model: nn.Module, x: torch.Tensor, surgery: str) -> None:
    plain = plan_folding(at_random(model))
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
@pytest.mark.parametrize(("name", "surgery"), in_turns(MEMBERS))
def test_torchvisions(name, surgery):
    model = torchvision_networks.build(name)
    x = torchvision_networks.images(name)[:1].double()
    check(model, x, surgery)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composer_attn.errors.NothingAttendedWarning")
@pytest.mark.parametrize(
    ("row", "surgery"), [pytest.param(r, s, id=f"{r.name}-{s}") for r, s in in_turns(ROWS)]
)
def test_timms(row: Row, surgery):
    check(build(row), torch.randn(1, 3, *row.size, dtype=torch.float64), surgery)
