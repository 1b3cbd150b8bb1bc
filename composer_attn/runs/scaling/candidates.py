"""The candidates of a search: all divisions of a budget of operations, and what they measure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log2
from pathlib import Path
from typing import NamedTuple

from composer_attn.checks import is_real, whole_number
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.config_check import find_mistakes
from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models.efficientnet import Scale
from composer_attn.runs.scaling.dimensions import POWERS, Dimensions, scaled
from composer_attn.runs.scaling.sizes import Data, Size, size_of

SMALLEST_BUDGET, LARGEST_GROWTH = 1.1, 16.0
MOST_STEPS = MOST_PHI = 10
_ONE = Scale(1.0, 1.0, 1.0)
_GREEK = {"depth": "alpha", "width": "beta", "resolution": "gamma"}


class Terms(NamedTuple):
    """The terms of a search.

    Attributes:
        budget: factor by which operations grow from the recipe to a candidate.
        steps: the number of equal parts in which the budget is divided over the dimensions.
        phi: the largest compound coefficient of the figure's lines.
        tolerance: how far, relatively, measured operations may be from the budget.
    """

    budget: float = 2.0
    steps: int = 3
    phi: int = 2
    tolerance: float = 0.25

    def meets(self, growth: float) -> bool:
        """Return whether operations that grew by this factor are within the budget."""
        return abs(growth / self.budget - 1) <= self.tolerance

    def check(self, dimensions: Dimensions) -> None:
        """Check the values.

        Raises:
            ArgumentError: one of them is invalid.
        """
        if not is_real(self.budget) or self.budget < SMALLEST_BUDGET:
            raise ArgumentError(
                f"budget, the factor by which operations grow, must be a number >= "
                f"{SMALLEST_BUDGET}; got {self.budget!r}"
            )
        whole_number("phi", self.phi, 1, MOST_PHI)
        count = len(dimensions.names)
        whole_number(f"steps for {', '.join(dimensions.names)}", self.steps, count, MOST_STEPS)
        if self.phi * log2(self.budget) > log2(LARGEST_GROWTH) + 1e-9:
            raise ArgumentError(
                f"budget {self.budget:g} at phi {self.phi} is {self.budget**self.phi:.4g} times "
                f"the recipe's operations; at most {LARGEST_GROWTH:g} times is supported"
            )
        if not is_real(self.tolerance) or not 0 < self.tolerance < 1:
            raise ArgumentError(
                f"tolerance must be more than 0 and less than 1; got {self.tolerance!r}"
            )


@dataclass(frozen=True)
class Candidate:
    """A scaled network.

    Attributes:
        base: the factors ``(alpha, beta, gamma)`` for a compound coefficient of 1.
        phi: the compound coefficient: the network's factors are ``base`` to this power.
        config: its config, with the recipe's seed and folder.
        size: its measured size.
        growth: its multiply-accumulates as a multiple of the recipe's.
    """

    base: Scale
    phi: int
    config: RunConfig
    size: Size
    growth: float

    @property
    def scale(self) -> Scale:
        """Its factors relative to the recipe."""
        return power(self.base, self.phi)

    @property
    def scales(self) -> tuple[str, ...]:
        """The dimensions that it scales."""
        return tuple(name for name in POWERS if getattr(self.base, name) != 1)

    @property
    def name(self) -> str:
        """Its name, which depends on the factors alone: a network is not trained twice."""
        return "-".join(f"{name[0]}{getattr(self.scale, name):.3f}" for name in POWERS)

    def variant(self, seed: int, out: Path) -> Variant:
        """Return its run with a seed, in its own folder within ``out``."""
        return Variant(
            self.name,
            seed,
            replace(
                self.config,
                run_name=f"{self.config.run_name}_{self.name}_seed{seed}",
                seed=seed,
                save_folder=str(out / f"{self.name}-seed{seed}"),
                autoresume=True,
            ),
        )


@dataclass(frozen=True)
class Plan:
    """All candidates of a search.

    Attributes:
        terms: the terms of the search.
        dimensions: the recipe's dimensions.
        data: the sizes of its data.
        recipe: the network as it is in the recipe.
        grid: all divisions of the budget, with a compound coefficient of 1.
        larger: for each division that a line of the figure may follow, the same with larger
            coefficients.
    """

    terms: Terms
    dimensions: Dimensions
    data: Data
    recipe: Candidate
    grid: tuple[Candidate, ...]
    larger: dict[Scale, tuple[Candidate, ...]]

    def meets(self, candidate: Candidate) -> bool:
        """Return whether a candidate of the grid is within the budget."""
        return self.terms.meets(candidate.growth)

    def is_compound(self, candidate: Candidate) -> bool:
        """Return whether a candidate scales all dimensions."""
        return len(candidate.scales) == len(self.dimensions.names)

    @property
    def trained(self) -> tuple[Candidate, ...]:
        """The networks to train first: the recipe, and what may be the best or begins a line."""
        chosen = (c for c in self.grid if self.meets(c) or c.base in self.larger)
        return (self.recipe, *chosen)

    @property
    def networks(self) -> int:
        """How many networks are trained: the first ones, and those along the figure's lines."""
        lines = len(self.dimensions.names) + 1
        return len(self.trained) + (self.terms.phi - 1) * lines


def power(base: Scale, phi: float) -> Scale:
    """Raise factors to the power of a compound coefficient."""
    return Scale(*(factor**phi for factor in base))


def divisions(budget: float, steps: int, dimensions: Sequence[str]) -> Iterator[Scale]:
    """Yield all divisions of a budget over dimensions, in whole steps.

    Each satisfies ``depth * width^2 * resolution^2 = budget``. The first of them scale the
    earlier dimensions.

    Example:
        >>> for scale in divisions(2, 1, ["depth", "width"]):
        ...     print(scale)
        Scale(depth=2.0, width=1.0, resolution=1.0)
        Scale(depth=1.0, width=1.4142135623730951, resolution=1.0)
    """
    for parts in product(range(steps, -1, -1), repeat=len(dimensions)):
        if sum(parts) == steps:
            yield _ONE._replace(
                **{
                    name: budget ** (part / steps / POWERS[name])
                    for name, part in zip(dimensions, parts, strict=True)
                }
            )


def make_plan(config: RunConfig, dimensions: Dimensions, data: Data, terms: Terms) -> Plan:
    """Build and measure all candidates of a search; nothing is trained.

    Raises:
        ArgumentError: a term of the search is invalid.
        ConfigError: a candidate is, or none is within the budget.
    """
    terms.check(dimensions)
    size = size_of(config, data)
    if not size.macs:
        message = f"{config.model['name']} has no multiply-accumulates to scale"
        raise ConfigError(Mistake("model", message))

    def candidate(base: Scale, phi: int) -> Candidate:
        own = scaled(config, dimensions, power(base, phi))
        try:
            mistakes = find_mistakes(own)
            if mistakes:
                raise ConfigError(*mistakes)
            measured = size_of(own, data)
        except ConfigError as error:
            text = "; ".join(str(error).splitlines())
            message = f"budget {terms.budget:g} with {_factors(base)} at phi {phi}: {text}"
            raise ConfigError(Mistake("", message)) from error
        return Candidate(base, phi, own, measured, measured.macs / size.macs)

    bases = list(divisions(terms.budget, terms.steps, dimensions.names))
    plan = Plan(
        terms,
        dimensions,
        data,
        Candidate(_ONE, 0, config, size, 1.0),
        tuple(candidate(base, 1) for base in bases),
        {},
    )
    _check_budget(plan)
    for each in _begin_lines(plan):
        phis = range(2, terms.phi + 1)
        plan.larger[each.base] = tuple(candidate(each.base, phi) for phi in phis)
    return plan


def _begin_lines(plan: Plan) -> list[Candidate]:
    """List the candidates that may begin a line of the figure.

    These are the ones that scale one dimension, and those that scale all of them within the budget,
    or else the one nearest to it.
    """
    single = [each for each in plan.grid if len(each.scales) == 1]
    compound = [each for each in plan.grid if plan.is_compound(each)]
    within = [each for each in compound if plan.meets(each)]
    return [*single, *(within or [_nearest(plan, compound)])]


def _nearest(plan: Plan, candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda each: abs(log2(each.growth / plan.terms.budget)))


def _check_budget(plan: Plan) -> None:
    if any(plan.meets(candidate) for candidate in plan.grid):
        return
    nearest = _nearest(plan, plan.grid)
    message = (
        f"no candidate has {plan.terms.budget:g} times the recipe's {plan.recipe.size.macs:,} "
        f"multiply-accumulates, give or take {plan.terms.tolerance:.0%}, as depth and channels are "
        f"rounded: the nearest has {nearest.growth:.3g} times ({_factors(nearest.base)})"
    )
    raise ConfigError(Mistake("--budget", message))


def _factors(base: Scale) -> str:
    return ", ".join(f"{_GREEK[name]} {getattr(base, name):.3g}" for name in POWERS)
