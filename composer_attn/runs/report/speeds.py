"""The speed of variants: of steps in turns if they were measured so, or else while training."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from composer_attn.runs.report.records import Record
from composer_attn.runs.training.step_times import StepTimes

IN_TURNS, TRAINING = "in turns", "while training"


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles.

    Attributes:
        low: lower quartile.
        median: the median.
        high: upper quartile.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quartiles | None":
        """Compute them, of at least two values."""
        if len(values) < 2:
            return None
        return cls(*quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Speed:
    """The speed of a variant.

    Attributes:
        step: seconds of a training step.
        relative: speed as a multiple of that of plain; of steps in turns by round.
        latency: seconds of the prediction for one image.
        kept_bytes: memory kept for backward.
        how: ``in turns``, or ``while training``, one run after another.
    """

    step: Quartiles | None
    relative: Quartiles | None
    latency: Quartiles | None
    kept_bytes: int | None
    how: str


def times_of(runs: Sequence[Record]) -> StepTimes | None:
    """Return the step times of the first run that has any."""
    return next((run.times for run in runs if run.times), None)


def speed_of(runs: Sequence[Record], plain: Sequence[Record] | None) -> Speed:
    """Return the speed of a variant's runs, compared with those of plain.

    Only times measured in turns with those of plain are compared with them.
    """
    here, there = times_of(runs), times_of(plain or ())
    if here is None:
        return Speed(_trained_step(runs), _trained(runs, plain), None, None, TRAINING)
    relative = None
    if there is not None and there.measurement == here.measurement:
        pairs = zip(there.steps, here.steps, strict=True)
        relative = Quartiles.of([other / own for other, own in pairs])
    elif there is None:
        relative = _trained(runs, plain)
    how = TRAINING if there is None and plain else IN_TURNS
    latency = Quartiles.of(here.latencies)
    return Speed(Quartiles.of(here.steps), relative, latency, here.kept_bytes, how)


def _trained_step(runs: Sequence[Record]) -> Quartiles | None:
    found = [(run.summary or {}).get("step_seconds") for run in runs]
    known = [values for values in found if isinstance(values, list) and len(values) == 3]
    return Quartiles(*known[0]) if known else None


def _trained(runs: Sequence[Record], plain: Sequence[Record] | None) -> Quartiles | None:
    """Return the ratio of mean throughputs in training, which has no quartiles."""
    here, there = _throughput(runs), _throughput(plain or ())
    return Quartiles(here / there, here / there, here / there) if here and there else None


def _throughput(runs: Sequence[Record]) -> float | None:
    found = [(run.summary or {}).get("images_per_second") for run in runs]
    known = [value for value in found if value]
    return sum(known) / len(known) if known else None


def how_measured(records: Sequence[Record]) -> str:
    """Describe how and on what the speeds of a comparison were measured."""
    times = [run.times for run in records if run.times]
    if times:
        kinds = {
            (
                f"{len(each.steps)} training steps of {each.batch_size} images "
                f"({_size(each.image_shape)}) and of {len(each.latencies)} predictions of one "
                f"image, on {each.device}, {_threads(each.threads)}, {each.precision}"
            )
            for each in times
        }
        return (
            "Speed: medians, quartiles in brackets, taken by all variants in turns after training, "
            f"without warm-up: {'; '.join(sorted(kinds))}. Kept memory is what the forward pass of "
            "a step keeps for backward."
        )
    found = {
        f"{run.summary['device']}, {_threads(run.summary.get('threads'))}, "
        f"{run.summary.get('precision')}"
        for run in records
        if run.summary and run.summary.get("device")
    }
    on = f", on {'; '.join(sorted(found))}" if found else ""
    return (
        f"Speed: measured during training, one run after another{on}. Compare it only if the "
        "machine did nothing else; composer-attn study measures steps of all variants in turns."
    )


def _size(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def _threads(count: int | None) -> str:
    return "threads not known" if count is None else f"{count} thread{'s' if count > 1 else ''}"
