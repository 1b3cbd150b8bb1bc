"""A comparison of runs: variants, with means and spreads over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from composer_attn.runs.components.variants import PLAIN
from composer_attn.runs.report.contrast import Contrast, contrast
from composer_attn.runs.report.intervals import LEVEL, Interval, t_interval, wilson
from composer_attn.runs.report.published import PublishedFigure
from composer_attn.runs.report.records import Record
from composer_attn.runs.report.speeds import Speed, speed_of
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.table import headline_named


@dataclass(frozen=True)
class SeedStatistics:
    """Statistics of a figure over seeds.

    Attributes:
        mean: mean over the runs that have it; ``None`` if none has.
        spread: standard deviation over seeds; ``None`` for fewer than two.
        count: number of runs that have it.
    """

    mean: float | None
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "SeedStatistics":
        """Compute the statistics of the values that are not None."""
        found = [value for value in values if value is not None]
        spread = stdev(found) if len(found) > 1 else None
        return cls(mean(found) if found else None, spread, len(found))


@dataclass(frozen=True)
class VariantResults:
    """The runs of a variant of a recipe, and their figures.

    Attributes:
        label: unique name of the variant on the page.
        name: ``plain``, or the names of its attentions.
        recipe: key that distinguishes recipes.
        runs: one for each seed, finished or not.
    """

    label: str
    name: str
    recipe: str
    runs: tuple[Record, ...]

    @property
    def setting(self) -> str:
        """Its attentions with all arguments that were given for them."""
        attention = self.runs[0].attention if self.runs else {}
        written = (
            f"{name}: {', '.join(f'{key}={value}' for key, value in arguments.items())}"
            if arguments
            else name
            for name, arguments in attention.items()
        )
        return "; ".join(written)

    def figure(self, get: Callable[[Record], float | None]) -> SeedStatistics:
        """Return the statistics of a figure over the finished runs."""
        return SeedStatistics.of([get(run) for run in self.runs if run.summary])

    def closing(self, key: str) -> SeedStatistics:
        """Return the statistics of a figure in the runs' summaries."""
        return self.figure(lambda run: (run.summary or {}).get(key))


@dataclass(frozen=True)
class Comparison:
    """The contents of a page.

    Attributes:
        variants: the compared variants.
        metric: the evaluation metric that is compared; that of the task if available.
        notices: caveats for the reader.
        published: published figures for the same networks.
    """

    variants: tuple[VariantResults, ...]
    metric: str
    notices: tuple[str, ...]
    published: tuple[PublishedFigure, ...]

    @property
    def headline(self) -> Headline:
        """How the metric is written, and what it is of."""
        return headline_named(self.metric)

    @property
    def records(self) -> list[Record]:
        """All runs."""
        return [run for variant in self.variants for run in variant.runs]

    def baseline(self, variant: VariantResults) -> VariantResults | None:
        """Return the plain variant of the same recipe."""
        same = (v for v in self.variants if v.recipe == variant.recipe and v.name == PLAIN)
        return next(same, None)

    def result(self, variant: VariantResults) -> SeedStatistics:
        """Return a variant's metric."""
        return variant.figure(lambda run: run.metric(self.metric))

    def interval(self, variant: VariantResults) -> Interval | None:
        """Return the interval of a variant's metric.

        With several seeds it is that of the mean; with one, of a share of evaluation images.
        """
        finished = [run for run in variant.runs if run.metric(self.metric) is not None]
        if len(finished) > 1:
            return t_interval([run.metric(self.metric) or 0.0 for run in finished])
        counts = finished[0].counts if finished and self.headline.of_images else None
        return wilson(*counts) if counts else None

    def contrast(
        self, variant: VariantResults, base: VariantResults | None = None, level: float = LEVEL
    ) -> Contrast | None:
        """Compare a variant with another, by default with the plain one of its recipe."""
        base = base or self.baseline(variant)
        if base is None or base is variant:
            return None
        return contrast(variant.runs, base.runs, self.metric, level)

    def difference(self, variant: VariantResults) -> float | None:
        """Return the difference of a variant from the plain one, over the seeds of both."""
        found = self.contrast(variant)
        return found.estimate if found else None

    def verdict(self, variant: VariantResults) -> str:
        """Describe whether the difference from the plain variant is more than chance."""
        found = self.contrast(variant)
        return found.verdict if found else ""

    def speed(self, variant: VariantResults) -> Speed:
        """Return a variant's speed, compared with that of the plain one."""
        plain = self.baseline(variant)
        return speed_of(variant.runs, plain.runs if plain else None)

    def relative_speed(self, variant: VariantResults) -> float | None:
        """Return a variant's training speed as a multiple of the plain one's."""
        relative = self.speed(variant).relative
        return relative.median if relative else None
