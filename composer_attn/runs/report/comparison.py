"""A comparison of runs: variants, and their means and spreads over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from composer_attn.runs.components.variants import PLAIN
from composer_attn.runs.report.published import Published
from composer_attn.runs.report.records import Record


@dataclass(frozen=True)
class Figure:
    """A figure over seeds.

    Attributes:
        mean: over the runs that have it; ``None`` where none has.
        spread: standard deviation over seeds; ``None`` for fewer than two.
        count: number of runs that have it.
    """

    mean: float | None
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Figure":
        """Make a figure of the values that are there."""
        found = [value for value in values if value is not None]
        spread = stdev(found) if len(found) > 1 else None
        return cls(mean(found) if found else None, spread, len(found))


@dataclass(frozen=True)
class VariantResults:
    """The runs of one variant of one recipe, and their figures.

    Attributes:
        label: the variant's name, unlike that of any other on the page.
        name: ``plain``, or its attentions'.
        recipe: tells runs of different recipes apart.
        runs: one for each seed, finished or not.
    """

    label: str
    name: str
    recipe: str
    runs: tuple[Record, ...]

    def figure(self, get: Callable[[Record], float | None]) -> Figure:
        """Take a figure from every run that came to its end."""
        return Figure.of([get(run) for run in self.runs if run.summary])

    def closing(self, key: str) -> Figure:
        """Take a figure of the runs' summaries."""
        return self.figure(lambda run: (run.summary or {}).get(key))


@dataclass(frozen=True)
class Comparison:
    """Everything that a page shows.

    Attributes:
        variants: what is compared.
        metric: the evaluation's metric that the page is about; ``accuracy`` where there is one.
        notices: what to bear in mind.
        published: figures of others for the same networks.
    """

    variants: tuple[VariantResults, ...]
    metric: str
    notices: tuple[str, ...]
    published: tuple[Published, ...]

    @property
    def records(self) -> list[Record]:
        """All runs."""
        return [run for variant in self.variants for run in variant.runs]

    def baseline(self, variant: VariantResults) -> VariantResults | None:
        """Return the plain variant of the same recipe."""
        same = (v for v in self.variants if v.recipe == variant.recipe and v.name == PLAIN)
        return next(same, None)

    def result(self, variant: VariantResults) -> Figure:
        """Return a variant's metric."""
        return variant.figure(lambda run: run.metric(self.metric))

    def difference(self, variant: VariantResults) -> float | None:
        """Return how much a variant's mean is above that of the plain one."""
        plain = self.baseline(variant)
        if plain is None or plain is variant:
            return None
        here, there = self.result(variant).mean, self.result(plain).mean
        return None if here is None or there is None else here - there

    def verdict(self, variant: VariantResults) -> str:
        """Say whether the difference from the plain variant is larger than the spread.

        The spread of a difference of two runs: the root of the sum of both variances over seeds.
        """
        difference, plain = self.difference(variant), self.baseline(variant)
        if difference is None or plain is None:
            return ""
        own, other = self.result(variant).spread, self.result(plain).spread
        if own is None or other is None:
            return "one seed: no spread"
        spread = (own**2 + other**2) ** 0.5
        return "larger than the spread" if abs(difference) > spread else "within the spread"

    def relative_speed(self, variant: VariantResults) -> float | None:
        """Return a variant's training throughput as a multiple of the plain one's."""
        plain = self.baseline(variant)
        here = variant.closing("images_per_second").mean
        there = plain.closing("images_per_second").mean if plain else None
        return here / there if here and there else None
