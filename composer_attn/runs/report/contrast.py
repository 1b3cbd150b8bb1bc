"""How much two variants differ, and whether that is more than chance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from composer_attn.runs.report.intervals import (
    LEVEL,
    Interval,
    newcombe,
    paired_shares,
    t_interval,
    welch_interval,
)
from composer_attn.runs.report.records import Record
from composer_attn.runs.tasks.table import headline_named

SAME = "not distinguishable"


@dataclass(frozen=True)
class Contrast:
    """The difference of a metric between two variants.

    Attributes:
        estimate: the difference, over the seeds that both have; of the means if there is none.
        interval: its confidence interval; ``None`` if there is too little to compute one.
        basis: what the interval is of: ``paired seeds``, ``separate seeds``, ``images`` or ``""``.
        seeds: number of seeds of the one and of the other.
        images: for each seed of both, by how many images the one is ahead, and of how many.
        of_images: whether the metric is a share of images, which has an interval in one seed.
    """

    estimate: float
    interval: Interval | None
    basis: str
    seeds: tuple[int, int]
    images: tuple[tuple[int, int], ...]
    of_images: bool = True

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and self.interval.excludes_zero

    @property
    def verdict(self) -> str:
        """What can be said of the difference."""
        if self.interval is None:
            return SAME if self.estimate == 0 else self._too_few()
        if not self.distinguishable:
            return SAME
        if self.basis == "images":
            return "more than the choice of images explains, in one seed"
        return "distinguishable"

    def _too_few(self) -> str:
        if min(self.seeds) == 1 < max(self.seeds):
            return f"{SAME}: one seed against {max(self.seeds)}"
        if max(self.seeds) == 1:
            return f"{SAME}: one seed{', images not known' if self.of_images else ''}"
        return f"{SAME}: every seed differs by the same"


def contrast(
    here: Sequence[Record], there: Sequence[Record], metric: str, level: float = LEVEL
) -> Contrast | None:
    """Compare a metric of the runs of two variants, paired by seed if possible.

    With one seed each, the interval is that of the choice of evaluation images: it says nothing
    of other seeds.

    Args:
        here: runs of the one.
        there: runs of the other, which is subtracted.
        metric: name of the metric.
        level: confidence level.

    Returns:
        ``None`` if one of them has no result.
    """
    ours, theirs = _by_seed(here, metric), _by_seed(there, metric)
    if not ours or not theirs:
        return None
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    one, other = _values(ours.values(), metric), _values(theirs.values(), metric)
    both = [_values(runs, metric) for runs in zip(*pairs, strict=True)] if pairs else [one, other]
    estimate = mean(both[0]) - mean(both[1])
    of_images = headline_named(metric).of_images
    images = tuple(ahead for pair in pairs if of_images and (ahead := _ahead(*pair)))
    if len(pairs) > 1:
        differences = [a - b for a, b in zip(*both, strict=True)]
        interval, basis = t_interval(differences, level), "paired seeds"
    elif len(one) > 1 and len(other) > 1:
        estimate = mean(one) - mean(other)
        interval, basis = welch_interval(one, other, level), "separate seeds"
    elif len(one) == len(other) == 1 and of_images:
        runs = next(iter(ours.values())), next(iter(theirs.values()))
        interval, basis = _of_images(*runs, level), "images"
        images = images or tuple(filter(None, [_ahead(*runs)]))
    else:
        interval, basis = None, ""
    seeds = (len(one), len(other))
    return Contrast(estimate, interval, basis if interval else "", seeds, images, of_images)


def _by_seed(runs: Sequence[Record], metric: str) -> dict[object, Record]:
    """Return the runs that have a result, by seed; of several with the same seed, the last."""
    finished = [run for run in runs if run.metric(metric) is not None]
    return {run.config.get("seed", str(run.folder)): run for run in finished}


def _values(runs: Iterable[Record], metric: str) -> list[float]:
    values = [run.metric(metric) for run in runs]
    return [value for value in values if value is not None]


def _ahead(here: Record, there: Record) -> tuple[int, int] | None:
    """Return by how many images one run is ahead of another, if both saw equally many."""
    ours, theirs = here.counts, there.counts
    if ours is None or theirs is None or ours[1] != theirs[1]:
        return None
    return ours[0] - theirs[0], ours[1]


def _of_images(here: Record, there: Record, level: float) -> Interval | None:
    ours, theirs = here.counts, there.counts
    one, other = here.predictions, there.predictions
    if ours is None or theirs is None or one is None or other is None:
        return None
    if not one.comparable(other):
        return newcombe(ours, theirs, level)
    gained, lost = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
    return paired_shares(gained, lost, len(one.labels), level)
