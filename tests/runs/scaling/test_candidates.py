"""The candidates of a search: on the constraint, measured, and within reason."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from composer_attn import apply_eca
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.models import build_network
from composer_attn.runs.scaling.candidates import divisions
from composer_attn.runs.scaling.sizes import read_data, size_of
from composer_attn.runs.training.build import build_parts
from composer_attn.runs.training.network_cost import count_parameters
from composer_attn.runs.training.summary import macs_of
from tests.runs.scaling.recipes import plan_of, recipe, small_plan

ALL = ("depth", "width", "resolution")


@pytest.fixture(scope="module")
def plan():
    return small_plan()


@pytest.mark.parametrize(("steps", "count"), [(3, 10), (4, 15), (10, 66)])
@pytest.mark.parametrize("budget", [1.5, 2, 4])
def test_every_division_satisfies_the_constraint(budget, steps, count):
    found = list(divisions(budget, steps, ALL))
    assert len(set(found)) == count
    for alpha, beta, gamma in found:
        assert alpha * beta**2 * gamma**2 == pytest.approx(budget)
        assert min(alpha, beta, gamma) >= 1


def test_without_a_depth_the_others_share_the_budget():
    found = list(divisions(2, 3, ("width", "resolution")))
    assert len(found) == 4
    assert all(s.depth == 1 and s.width**2 * s.resolution**2 == pytest.approx(2) for s in found)


def test_operations_and_parameters_are_measured(plan):
    for candidate in (plan.recipe, *plan.grid[::3], *plan.larger[plan.grid[0].base]):
        network = build_network({**candidate.config.model, "num_classes": 10}).eval()
        side = round(40 * candidate.scale.resolution)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, side, side))
        assert candidate.size.image == side == candidate.config.train_dataset["size"]
        assert candidate.size.macs == counter.get_total_flops() // 2
        assert candidate.size.parameters == count_parameters(network)
        assert candidate.growth == candidate.size.macs / plan.recipe.size.macs


def test_attention_of_the_recipe_is_measured_with_the_network():
    config = recipe(algorithms={"eca": {"min_channels": 16, "kernel_size": 5}})
    network = build_network({**config.model, "num_classes": 10})
    before = count_parameters(network)
    apply_eca(network, min_channels=16, kernel_size=5)
    size = size_of(config, read_data(config))
    assert size.parameters == count_parameters(network) > before
    assert size.macs > size_of(recipe(), read_data(config)).macs


def test_a_run_counts_the_same_operations(plan):
    config = plan.grid[4].config
    assert plan.grid[4].size.macs == macs_of(config, build_parts(config))


def test_larger_networks_continue_along_their_lines(plan):
    depth, _, _, _, together, *_ = plan.grid
    assert (depth.scales, together.scales) == (("depth",), ALL)
    (larger,) = plan.larger[together.base]
    assert larger.scale == pytest.approx(tuple(factor**2 for factor in together.base))
    assert larger.scale.depth * larger.scale.width**2 * larger.scale.resolution**2 == (
        pytest.approx(4)
    )
    assert [c.scales for c in plan.grid if c.base in plan.larger] == [
        ("depth",), ALL, ("width",), ("resolution",),
    ]  # fmt: skip
    assert plan.networks == 1 + 10 + 4


def test_a_network_has_the_same_name_in_every_search(plan):
    depth, (larger,) = plan.grid[0], plan.larger[plan.grid[0].base]
    quadrupled = replace(depth, base=next(divisions(4, 3, ALL)))
    assert quadrupled.name == larger.name == "d4.000-w1.000-r1.000" != depth.name
    assert len({candidate.name for candidate in (plan.recipe, *plan.grid)}) == 11


def test_runs_differ_from_the_recipe_in_size_and_place_alone(plan, tmp_path):
    variant = plan.grid[4].variant(18, tmp_path)
    assert variant.folder == tmp_path / "d1.260-w1.122-r1.122-seed18"
    assert variant.config.seed == 18
    assert variant.config.autoresume
    for key in ("optimizer", "batch_size", "max_duration", "algorithms", "callbacks"):
        assert getattr(variant.config, key) == getattr(plan.recipe.config, key)


def test_candidates_beside_the_budget_are_trained_for_the_picture_alone(plan):
    plan = replace(plan, terms=plan.terms._replace(tolerance=0.15))
    inside = [c for c in plan.grid if 1.7 <= c.growth <= 2.3]
    assert 0 < len(inside) < 10
    assert [c for c in plan.grid if plan.meets(c)] == inside
    single = {c.name for c in plan.grid if len(c.scales) == 1}
    assert {c.name for c in plan.trained[1:]} == {c.name for c in inside} | single


def test_a_line_leads_through_a_compound_network_also_where_none_is_within_the_budget():
    tiny = recipe(model={"name": "mobilenet_v2", "width_mult": 0.05}, size=32)
    plan = plan_of(tiny, budget=1.2, steps=2, phi=1, tolerance=0.2)
    (compound,) = [c for c in plan.grid if plan.is_compound(c)]
    assert not plan.meets(compound)
    assert compound.base in plan.larger
    assert compound in plan.trained


def test_a_budget_that_no_candidate_meets_is_refused():
    # Channels are multiples of 8, and images have whole pixels.
    tiny = recipe(model={"name": "mobilenet_v2", "width_mult": 0.05}, size=8)
    with pytest.raises(ConfigError, match=r"^--budget: no candidate has 1\.9 times the") as e:
        plan_of(tiny, budget=1.9, tolerance=0.01)
    assert "the nearest has" in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"budget": 1}, "budget, .*, must be a number >= 1.1; got 1"),
        ({"budget": float("nan")}, "budget, .*, must be a number"),
        ({"budget": 5}, "budget 5 at phi 2 is 25 times the recipe's operations; at most 16 times"),
        ({"phi": 5}, "budget 2 at phi 5 is 32 times"),
        ({"phi": 10**9}, "phi must be a whole number <= 10"),
        ({"phi": 0}, "phi must be a whole number >= 1; got 0"),
        ({"steps": 2}, "steps for depth, width, resolution must be a whole number >= 3; got 2"),
        ({"steps": 11}, "must be a whole number <= 10; got 11"),
        ({"tolerance": 0}, "tolerance must be more than 0 and less than 1; got 0"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms, says):
    with pytest.raises(ArgumentError, match=says):
        plan_of(recipe(), **terms)


@pytest.mark.parametrize(
    ("changed", "terms", "says"),
    [
        ({"model": {"name": "efficientnet", "depth": 7}}, {},
         r"budget 2 with alpha 2, beta 1, gamma 1 at phi 1: model: depth must be from 0.05 to 8 "),
        ({"model": {"name": "mobilenet_v2", "width_mult": 400.0}}, {}, "at most 10,000,000,000"),
        ({"size": 5000}, {}, r"^train_dataset.size: must be from 1 to 4096 pixels; got 5000"),
        ({"eval_dataset": None}, {}, "^eval_dataset: is needed"),
    ],
)  # fmt: skip
def test_networks_and_images_beyond_reason_are_refused(changed, terms, says):
    with pytest.raises(ConfigError, match=says) as caught:
        plan_of(recipe(**changed), **terms)
    assert len(str(caught.value).splitlines()) == 1
