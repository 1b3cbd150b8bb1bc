"""Every surgery on a network of every family: plan, apply, train a step, give back, exactly."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    detach_attention,
    plan_eca,
    plan_squeeze_excite,
)
from tests.commands import ROOT
from tests.families.breadth import ROWS, WITHOUT_NORMS, Row, build, family_of, run, table

SQUEEZE_EXCITE = (plan_squeeze_excite, apply_squeeze_excite, {"latent_channels": 1 / 16})
ECA = (plan_eca, apply_eca, {})
NORM = (plan_eca, apply_eca, {"placement": "norm"})
CASES = [
    *((row, "se", *SQUEEZE_EXCITE) for row in ROWS),
    *((row, "eca", *ECA) for row in ROWS[::3]),
    *((row, "norm", *NORM) for row in ROWS[1::3] if row.name not in WITHOUT_NORMS),
]


def test_every_family_of_torchvision_and_sixty_of_timm_are_tried():
    tried = {family_of(row) for row in ROWS}
    for module in (models, models.detection, models.segmentation, models.video):
        builders = [models.get_model_builder(name) for name in models.list_models(module=module)]
        assert {builder.__module__ for builder in builders} <= tried
    assert sum(family.startswith("timm.") for family in tried) >= 60
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_page_shows_what_is_tried():
    assert table() in (ROOT / "docs" / "published.md").read_text()


def test_networks_said_to_be_without_norms_are_in_the_table():
    assert {row.name for row in ROWS} >= WITHOUT_NORMS


def of_model(network: nn.Module) -> tuple:
    classes = {name: type(module) for name, module in network.named_modules()}
    return classes, copy.deepcopy(network.state_dict())


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "planning", "applying", "arguments"),
    [pytest.param(row, *rest, id=f"{row.name}-{label}") for row, label, *rest in CASES],
)
def test_it_is_attended_trains_and_is_given_back(row, planning, applying, arguments):
    network = build(row).eval()
    arguments = {"min_channels": row.min_channels, **arguments}
    classes, state = of_model(network)
    parameters = count(network)
    with torch.no_grad():
        before = run(row, network)
    assert all(tensor.numel() and tensor.isfinite().all() for tensor in before)

    plan = planning(network, **arguments)
    assert plan.chosen
    assert applying(network, **arguments) == plan
    assert count(network) == parameters + plan.parameters

    assert take_gradients(row, network) == {site.name for site in plan.chosen}

    assert len(detach_attention(network.eval())) == len(plan.chosen)
    given_back, now = of_model(network)
    assert given_back == classes
    assert list(now) == list(state)
    buffers = {name for name, _ in network.named_buffers()}
    assert all(torch.equal(now[key], state[key]) for key in state if key not in buffers)
    network.load_state_dict(state)  # batch norms have seen a batch
    with torch.no_grad():
        after = run(row, network)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def take_gradients(row: Row, network: nn.Module) -> set[str]:
    """Take the gradients of a training step; return the sites whose attentions have theirs."""
    outputs = run(row, network.train())
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    return {
        name
        for name, attention in attended_modules(network).items()
        if all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
    }
