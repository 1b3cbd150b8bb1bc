"""The text and the numbers of a plan."""

import dataclasses

import pytest

from composer_attn.surgery import Site, SurgeryPlan

CHOSEN = Site("layer1.0.conv1", "Conv2d", 1024, parameters=12345)
PASSED = Site("", "Conv1d", 8, "in exclude")


def test_sites_are_chosen_where_nothing_speaks_against_them():
    plan = SurgeryPlan("SqueezeExcitation", (PASSED, CHOSEN, CHOSEN))
    assert plan.chosen == (CHOSEN, CHOSEN)
    assert plan.passed_over == (PASSED,)
    assert plan.parameters == 2 * 12345


def test_printing_draws_a_table_under_a_line_of_totals():
    assert str(SurgeryPlan("SqueezeExcitation", (CHOSEN, PASSED))).splitlines() == [
        "SqueezeExcitation: 1 of 2 candidates chosen, 12,345 parameters added",
        "site                kind    channels  parameters  chosen",
        "layer1.0.conv1      Conv2d  1024      12,345      yes",
        "(the model itself)  Conv1d  8         0           no: in exclude",
    ]


def test_printing_no_candidates_draws_the_heading_alone():
    assert str(SurgeryPlan("SqueezeExcitation", ())).splitlines() == [
        "SqueezeExcitation: 0 of 0 candidates chosen, 0 parameters added",
        "site  kind  channels  parameters  chosen",
    ]


@pytest.mark.parametrize("thing", [CHOSEN, SurgeryPlan("SqueezeExcitation", (CHOSEN,))])
def test_plans_are_values(thing):
    assert thing == dataclasses.replace(thing)
    assert hash(thing) == hash(dataclasses.replace(thing))
    field = dataclasses.fields(thing)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, field, "other")
