"""Custom attention is recognized by its forward, whatever its name."""

import pytest
import torch
from torch import nn

from composer_attn.functional import attended_modules, detach_attention, plan_eca, remove_attention
from tests import snapshots
from tests.existing.table import CHANNELS, WRITTEN, each_written, network
from tests.surgeries import each_surgery, names


def test_the_table_has_many_in_it():
    assert len(WRITTEN) >= 27


@each_surgery
@each_written
def test_nothing_inside_is_attended(surgery, written):
    model, _ = network(written)
    plan = surgery.apply(model, min_channels=1)
    assert names(plan.chosen) == ("conv", "last")
    kind = type(model.own).__name__
    assert {site.reason for site in plan.passed_over} <= {f"inside {kind} 'own'"}
    inner = [m for m in model.own.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    assert len(plan.passed_over) == len(inner)
    assert tuple(attended_modules(model)) == ("conv", "last")


@each_surgery
@each_written
def test_it_is_replaced_and_restored(surgery, written):
    model, x = network(written)
    before, own, outputs = snapshots.of_model(model), model.own, model(x)
    if hasattr(own, "seen"):
        own.seen.clear()
    plan = surgery.apply(model, replace=True, min_channels=1)
    chosen = [(site.name, site.kind, site.channels) for site in plan.chosen]
    assert chosen == [("own", type(own).__name__, CHANNELS)]
    attention = attended_modules(model)["own"]
    assert type(attention) is surgery.attention
    expected = model.last(attention(model.before(x)))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    detach_attention(model)
    assert model.own is own
    torch.testing.assert_close(model(x), outputs, rtol=0, atol=0)
    assert [entry[:3] for entry in snapshots.of_model(model)[0]] == [e[:3] for e in before[0]]


@each_written
def test_it_can_be_taken_out(written):
    model, x = network(written)
    own = model.own
    assert remove_attention(model) == {"own": own}
    assert type(model.own) is nn.Identity
    torch.testing.assert_close(model(x), model.last(model.before(x)), rtol=0, atol=0)


@pytest.fixture
def nameless():
    """Take their names from classes of these tests, and give them back."""
    names = {}

    def rename(model):
        for cls in {c for m in model.modules() for c in type(m).__mro__}:
            if cls.__module__.startswith("tests.existing."):
                names.setdefault(cls, cls.__name__)
                cls.__name__ = "Unit"

    yield rename
    for cls, name in names.items():
        cls.__name__ = name


@each_written
def test_the_name_makes_no_difference(written, nameless):
    model, _ = network(written)
    nameless(model)
    plan = plan_eca(model, replace=True)
    chosen = [(site.name, site.kind, site.channels) for site in plan.chosen]
    assert chosen == [("own", "Unit", CHANNELS)]
