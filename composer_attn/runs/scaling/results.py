"""The results of a search: the best candidate, what cannot be told from it, the figure's lines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, variance
from typing import Any

from omegaconf import OmegaConf

from composer_attn.runs.models.efficientnet import Scale
from composer_attn.runs.report.csv_file import write_csv
from composer_attn.runs.report.records import read_record
from composer_attn.runs.scaling.candidates import Candidate, Plan

_METRIC = "accuracy"
_NORMAL = 1.96  # 95% of a normal distribution are within so many standard deviations
TOGETHER = "all together"


@dataclass(frozen=True)
class Result:
    """A candidate and its accuracy.

    Attributes:
        candidate: the candidate.
        accuracies: the final evaluation accuracy of each finished seed.
        evaluated: number of evaluation images, if known.
    """

    candidate: Candidate
    accuracies: tuple[float, ...]
    evaluated: int | None

    @property
    def accuracy(self) -> float | None:
        """The mean over seeds; ``None`` if no run has finished."""
        return mean(self.accuracies) if self.accuracies else None

    @property
    def error(self) -> float:
        """The standard error of the accuracy.

        The sum of two variances: that of a proportion of ``evaluated`` images, and that of the
        mean over seeds, if there are several.
        """
        if not self.accuracies:
            return 0.0
        # As after Agresti and Coull, so that 100% of a few images is not certain.
        n = (self.evaluated or 0) + 4
        share = (mean(self.accuracies) * (self.evaluated or 0) + 2) / n
        images = share * (1 - share) / n if self.evaluated else 0.0
        count = len(self.accuracies)
        seeds = variance(self.accuracies) / count if count > 1 else 0.0
        return (images + seeds) ** 0.5


@dataclass(frozen=True)
class Line:
    """A line of the figure: a way of scaling, followed to larger networks.

    Attributes:
        name: the dimension, or :data:`TOGETHER`.
        base: the factors for a compound coefficient of 1.
        larger: the candidates with larger coefficients.
        points: the results along the line, from the recipe on.
    """

    name: str
    base: Scale
    larger: tuple[Candidate, ...]
    points: tuple[Result, ...]


@dataclass(frozen=True)
class Results:
    """The results of a search.

    Attributes:
        plan: what was searched.
        recipe: the result of the network as it is in the recipe.
        grid: the result of each trained candidate, in the order of the plan.
        lines: the lines of the figure.
        seeds: number of seeds.
    """

    plan: Plan
    recipe: Result
    grid: tuple[Result, ...]
    lines: tuple[Line, ...]
    seeds: int

    @property
    def best(self) -> Result | None:
        """The candidate within the budget with the highest accuracy; of equal ones, the cheapest.

        ``None`` if none has finished.
        """
        return _best([result for result in self.grid if self.plan.meets(result.candidate)])

    @property
    def rivals(self) -> list[Result]:
        """The candidates within the budget whose accuracy cannot be told from that of the best.

        The difference is at most 1.96 times its standard error. The same images are evaluated by
        both, which this does not use: it errs towards calling too many alike.
        """
        best = self.best
        if best is None or best.accuracy is None:
            return []
        return [
            result
            for result in self.grid
            if result is not best
            and result.accuracy is not None
            and self.plan.meets(result.candidate)
            and best.accuracy - result.accuracy
            <= _NORMAL * (best.error**2 + result.error**2) ** 0.5
        ]


def _best(results: Sequence[Result]) -> Result | None:
    found = [result for result in results if result.accuracies]
    return max(
        found, key=lambda r: (r.accuracy or 0.0, -r.candidate.size.macs), default=None
    )  # fmt: skip


def read_results(plan: Plan, seeds: Sequence[int], out: Path) -> Results:
    """Read the results of a search from the folders of its runs.

    Args:
        plan: the plan.
        seeds: the seeds.
        out: folder of the search.
    """

    def read(candidate: Candidate) -> Result:
        records = [read_record(candidate.variant(seed, out).folder) for seed in seeds]
        found = [record.metric(_METRIC) for record in records]
        accuracies = tuple(value for value in found if value is not None)
        return Result(candidate, accuracies, plan.data.evaluated)

    recipe = read(plan.recipe)
    grid = tuple(read(candidate) for candidate in plan.trained[1:])
    lines = []
    for result in _followed(plan, grid):
        candidate = result.candidate
        larger = plan.larger.get(candidate.base, ())
        name = candidate.scales[0] if len(candidate.scales) == 1 else TOGETHER
        points = (recipe, result, *(read(each) for each in larger))
        lines.append(Line(name, candidate.base, larger, points))
    return Results(plan, recipe, grid, tuple(lines), len(seeds))


def _followed(plan: Plan, grid: Sequence[Result]) -> list[Result]:
    """List the results that lines lead through: each single dimension, the best of all together."""
    together = _best([r for r in grid if r.candidate.base in plan.larger and _joint(plan, r)])
    single = [result for result in grid if len(result.candidate.scales) == 1]
    return [*single, *([together] if together else [])]


def _joint(plan: Plan, result: Result) -> bool:
    return plan.is_compound(result.candidate)


def rows(results: Results) -> list[dict[str, Any]]:
    """List all networks of a search with their figures; ``None`` for missing ones."""
    along = [point for line in results.lines for point in line.points[2:]]
    trained = {result.candidate.name: result for result in (results.recipe, *results.grid, *along)}
    candidates = [results.plan.recipe, *results.plan.grid, *(r.candidate for r in along)]
    return [
        {
            "network": candidate.name,
            "phi": candidate.phi,
            **dict(zip(("alpha", "beta", "gamma"), candidate.base, strict=True)),
            "image": candidate.size.image,
            "parameters": candidate.size.parameters,
            "macs": candidate.size.macs,
            "growth": candidate.growth,
            "within_budget": candidate.phi == 1 and results.plan.meets(candidate),
            "accuracy": result.accuracy if result else None,
            "standard_error": result.error if result and result.accuracies else None,
            "finished": len(result.accuracies) if result else 0,
        }
        for candidate in candidates
        for result in (trained.get(candidate.name),)
    ]


def write_results(results: Results, out: Path) -> None:
    """Write ``results.csv``, ``results.json`` and, if there is a best candidate, ``best.yaml``."""
    found = rows(results)
    write_csv(out / "results.csv", found)
    best = results.best
    content = {
        **results.plan.terms._asdict(),
        "seeds": results.seeds,
        "evaluated": results.plan.data.evaluated,
        "best": best.candidate.name if best else None,
        "not_distinguishable": [result.candidate.name for result in results.rivals],
        "networks": found,
    }
    (out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if best:
        (out / "best.yaml").write_text(best_recipe(best.candidate), encoding="utf-8")


def best_recipe(candidate: Candidate) -> str:
    """Return the YAML of a candidate's recipe, to be trained by itself."""
    name = f"{candidate.config.run_name}_scaled"
    config = replace(candidate.config, run_name=name, save_folder=f"runs/{name}")
    factors = dict(zip(("alpha", "beta", "gamma"), candidate.base, strict=True))
    told = ", ".join(f"{name} {factor:.4g}" for name, factor in factors.items())
    head = f"# {told}: {candidate.size.macs:,} multiply-accumulates for an image.\n"
    return head + OmegaConf.to_yaml(OmegaConf.structured(config))
