"""Measure the variants of a network at several batch sizes, in interleaved rounds."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from composer_attn.checks import unknown, whole_number
from composer_attn.costs.timing import quartiles, ratios, take_turns
from composer_attn.errors import ArgumentError, BackendWarning, first_line
from composer_attn.runs.benchmark.subject import Subject
from composer_attn.runs.benchmark.variants import DEFAULT_VARIANTS, VARIANTS, Run, prepare

DEFAULT_ROUNDS = 20
_WARMUPS = 3
# Largest accepted difference of a variant's outputs from the same network's, in units of the
# largest output.
_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Row:
    """What was measured of a variant at a batch size.

    Attributes:
        batch: number of images per call.
        variant: its name.
        median_ms: median latency of a call in milliseconds; None if it did not run.
        lower_quartile_ms: lower quartile of the latencies.
        upper_quartile_ms: upper quartile.
        images_per_second: throughput at the median latency.
        ratio: median of the latency relative to ``plain`` in the same round.
        ratio_lower_quartile: lower quartile of these ratios.
        ratio_upper_quartile: upper quartile.
        note: why it did not run, or a warning; otherwise empty.
    """

    batch: int
    variant: str
    median_ms: float | None = None
    lower_quartile_ms: float | None = None
    upper_quartile_ms: float | None = None
    images_per_second: float | None = None
    ratio: float | None = None
    ratio_lower_quartile: float | None = None
    ratio_upper_quartile: float | None = None
    note: str = ""

    def as_record(self) -> dict[str, object]:
        """Return the fields in order, for a CSV file."""
        return asdict(self)


def check_settings(
    batches: Sequence[int], device: str, rounds: int, variants: Sequence[str]
) -> None:
    """Check the arguments of :func:`measure`.

    Raises:
        ArgumentError: one of them is invalid.
    """
    for batch in batches:
        whole_number("batch", batch, minimum=1)
    whole_number("rounds", rounds, minimum=2)
    for name in variants:
        if name not in VARIANTS:
            raise ArgumentError(unknown("variant", name, VARIANTS))
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be cpu, cuda or cuda:INDEX; got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"device must be cpu: torch finds no GPU here; got {device!r}")


def measure(
    subject: Subject,
    batches: Sequence[int],
    device: str = "cpu",
    rounds: int = DEFAULT_ROUNDS,
    variants: Sequence[str] = DEFAULT_VARIANTS,
) -> Iterator[list[Row]]:
    """Measure variants of a network; ``plain`` always comes first.

    Args:
        subject: the network.
        batches: numbers of images per call.
        device: ``cpu`` or ``cuda``.
        rounds: timed calls of each variant, at least two. In each round all variants take their
            turn, starting with another one each time.
        variants: names in :data:`~composer_attn.runs.benchmark.variants.VARIANTS`.

    Yields:
        For each batch size, the rows of all variants.

    Raises:
        ArgumentError: an argument is invalid, or the plain network does not accept the images.
    """
    check_settings(batches, device, rounds, variants)
    names = list(dict.fromkeys(("plain", *variants)))
    runs, notes = _prepared(names, subject, torch.zeros(2, *subject.image, device=device))
    for batch in batches:
        images = torch.randn(batch, *subject.image, device=device)
        yield _measured(names, dict(runs), dict(notes), images, rounds)


def _prepared(
    names: Sequence[str], subject: Subject, images: Tensor
) -> tuple[dict[str, Run], dict[str, str]]:
    """Return the variants that can be built, and notes about the others."""
    runs: dict[str, Run] = {}
    notes: dict[str, str] = {}
    for name in names:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                runs[name] = prepare(name, subject, images)
            except Exception as error:  # of any type, from compilers and runtimes
                notes[name] = _reason(error)
        told = [str(w.message) for w in caught if issubclass(w.category, BackendWarning)]
        if told:
            notes[name] = told[0]
    return runs, notes


def _measured(
    names: Sequence[str],
    runs: dict[str, Run],
    notes: dict[str, str],
    images: Tensor,
    rounds: int,
) -> list[Row]:
    outputs: dict[str, Tensor] = {}
    for name in names:
        if name not in runs:
            continue
        try:
            outputs[name] = runs[name](images)
        except Exception as error:  # of any type: compilers run here, and memory ends
            if name == "plain":
                shape = "x".join(map(str, images.shape))
                message = f"the network does not run on images {shape}: {first_line(error)}"
                raise ArgumentError(message) from error
            notes[name] = _reason(error)
            del runs[name]
    for name in _differing(outputs):
        notes[name] = "not measured: its outputs differ from the network's"
        del runs[name]
    actions = [lambda run=run: run(images) for run in runs.values()]  # type: ignore[misc]
    take_turns(actions, _WARMUPS)
    seconds = dict(zip(runs, take_turns(actions, rounds), strict=True))
    return [_row(name, len(images), seconds, notes.get(name, "")) for name in names]


def _reason(error: Exception) -> str:
    """Return an error's first line, with the second if that is what it announces."""
    lines = str(error).splitlines()
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)


def _differing(outputs: Mapping[str, Tensor]) -> list[str]:
    """List the variants that compute something else than the eager network."""
    found = []
    for name, output in outputs.items():
        reference = outputs.get("attended" if VARIANTS[name].attended else "plain")
        if reference is None or not isinstance(output, Tensor):
            continue
        largest = reference.abs().max().clamp(min=1e-6)
        if not (output - reference).abs().max() <= _TOLERANCE * largest:
            found.append(name)
    return found


def _row(name: str, batch: int, seconds: Mapping[str, list[float]], note: str) -> Row:
    if name not in seconds:
        return Row(batch, name, note=note)
    low, median, high = quartiles(seconds[name])
    return Row(
        batch,
        name,
        round(1e3 * median, 3),
        round(1e3 * low, 3),
        round(1e3 * high, 3),
        round(batch / median, 2),
        **ratios(seconds[name], seconds["plain"]),
        note=note,
    )
