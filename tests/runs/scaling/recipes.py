"""Recipes to scale, their plans, and runs of these with given accuracies."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.scaling.candidates import Candidate, Plan, Terms, make_plan
from composer_attn.runs.scaling.dimensions import find_dimensions
from composer_attn.runs.scaling.sizes import read_data
from tests.runs.runs_on_disk import write_run

SMALL = {"name": "efficientnet", "depth": 0.5, "width": 0.35}


def recipe(model: dict[str, Any] = SMALL, size: int = 40, **config: Any) -> RunConfig:
    """Return a recipe on synthetic images."""
    data = {"name": "synthetic", "num_samples": 8, "num_classes": 10, "size": size}
    sections = {"train_dataset": dict(data), "eval_dataset": data | {"num_samples": 400}}
    optimizer = {"name": "sgd", "lr": 0.01}
    return RunConfig(
        run_name="small",
        model=dict(model),
        optimizer=optimizer,
        batch_size=4,
        device="cpu",
        **(sections | config),
    )


def plan_of(config: RunConfig, **terms: Any) -> Plan:
    """Return the plan of a search."""
    return make_plan(config, find_dimensions(config), read_data(config), Terms(**terms))


@cache
def small_plan(**terms: Any) -> Plan:
    """Return the plan of a search on the small recipe, made once for all tests."""
    return plan_of(recipe(), **terms)


def write_runs(
    candidates: list[Candidate], out: Path, accuracy: Callable[[Candidate, int], float | None],
    seeds: range = range(17, 18),
) -> None:  # fmt: skip
    """Write finished runs of candidates; those without an accuracy are not finished."""
    for seed in seeds:
        for candidate in candidates:
            reached = accuracy(candidate, seed)
            folder = candidate.variant(seed, out).folder
            write_run(folder, None, seed, reached or 0.1, finished=reached is not None)
