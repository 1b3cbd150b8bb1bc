"""How long a study takes: an estimate from a few steps, corrected by what its runs then take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from composer_attn.runs.components.variants import Variant
from composer_attn.runs.study.timing import estimate, steps_of
from composer_attn.runs.training.step_times import StepTimes


@dataclass
class _Run:
    """The known times of a run.

    Attributes:
        estimate: seconds that it takes from the start; ``None`` if not known.
        steps: number of its steps; ``None`` if not known.
        resumed: the step that it resumed from.
        batch: the step that it has reached.
        begun, ended: when it began and ended, in seconds; ``None`` if it has not.
    """

    estimate: float | None
    steps: int | None
    resumed: int = 0
    batch: int = 0
    begun: float | None = None
    ended: float | None = None

    @property
    def share(self) -> float:
        """The part of the run that had to be trained when the study was started."""
        return 1 - min(self.resumed / self.steps, 1) if self.steps else 1.0


class Outlook:
    """The time that the runs of a study still take.

    Args:
        variants: the runs that are not trained yet.
        times: times of a few steps of each variant, by name.
        batches: for each folder, the step that its run resumes from.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        times: Mapping[str, StepTimes],
        batches: Mapping[Path, int],
    ):
        self._runs = {}
        for variant in variants:
            found = times.get(variant.name)
            seconds = estimate(variant.config, found) if found else None
            steps = steps_of(variant.config, found.batches) if found else None
            resumed = batches.get(variant.folder, 0)
            self._runs[variant.folder] = _Run(seconds, steps, resumed, resumed)

    def note(self, folder: Path, batch: int, now: float, ended: bool) -> None:
        """Note how far a run is, at a time in seconds."""
        run = self._runs.get(folder)
        if run is None:
            return
        run.begun = now if run.begun is None else run.begun
        run.batch = max(run.batch, batch)
        if ended and run.ended is None:
            run.ended = now

    def left(self, folder: Path, now: float) -> float | None:
        """Return the seconds that a run still takes; ``None`` if not known."""
        run = self._runs.get(folder)
        if run is None or run.ended is not None:
            return 0.0
        if run.begun is None:
            return None if run.estimate is None else run.estimate * run.share * self._correction()
        since = now - run.begun
        done = run.batch - run.resumed
        if run.steps and done > 0:  # by its own pace
            return since / done * max(run.steps - run.batch, 0)
        if run.estimate is None:
            return None
        return max(run.estimate * run.share * self._correction() - since, 0.0)

    def total(self, now: float) -> float | None:
        """Return the seconds that all runs still take; ``None`` if not known."""
        each = [self.left(folder, now) for folder in self._runs]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) if len(known) == len(each) else None

    def _correction(self) -> float:
        """Return the ratio of the time that ended runs took to their estimates."""
        ended = [
            (run.ended - run.begun, run.estimate * run.share)
            for run in self._runs.values()
            if run.ended is not None and run.begun is not None and run.estimate
        ]
        expected = sum(seconds for _, seconds in ended)
        return sum(seconds for seconds, _ in ended) / expected if expected else 1.0


def in_words(seconds: float | None) -> str:
    """Format a duration for people.

    Example:
        >>> in_words(42), in_words(400), in_words(5000)
        ('40 s', '7 min', '1 h 23 min')
    """
    if seconds is None:
        return "an unknown time"
    if seconds < 100:
        return f"{max(round(seconds / 10) * 10, 10)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
