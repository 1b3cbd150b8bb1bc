"""Curves of training: the metric, its error, the training accuracy and loss."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.records import Record
from composer_attn.runs.report.style import add_legend, new_figure, style_of, time_unit

_WINDOWS = 20  # windows of smoothing in a run
Drawn = tuple[str, str, str, str, Figure]


@dataclass(frozen=True)
class _Curve:
    """A figure of a run over time: ``(n,)`` each.

    Attributes:
        images: images seen.
        seconds: training time, without evaluation and first steps.
        values: the figure.
    """

    images: np.ndarray
    seconds: np.ndarray
    values: np.ndarray

    def x(self, by: str) -> np.ndarray:
        return self.images if by == "images" else self.seconds


@dataclass(frozen=True)
class _Kind:
    """A figure that is drawn against images and time.

    Attributes:
        name: name of the plots' files.
        label: label of the axis.
        title: title of the plots, without their horizontal axis.
        read: returns the curve of a run.
        logarithmic: whether the axis is.
        axes: the horizontal axes.
        smoothed: whether it is of single steps, and drawn smoothed.
    """

    name: str
    label: str
    title: str
    read: Callable[[Record], _Curve | None]
    logarithmic: bool = False
    axes: tuple[str, ...] = ("images", "time")
    smoothed: bool = False


def curve_plots(comparison: Comparison) -> Iterator[Drawn]:
    """Yield the curves for which there is data."""
    for kind in _kinds(comparison):
        for by in kind.axes:
            drawn = _draw(comparison, kind, by)
            if drawn is not None:
                yield drawn


def _kinds(comparison: Comparison) -> Iterable[_Kind]:
    metric, headline = comparison.metric, comparison.headline
    scale, is_accuracy = headline.scale, metric.endswith("accuracy")
    yield _Kind(
        metric,
        headline.axis,
        f"{headline.title} per evaluation",
        lambda run: _moments(run, "eval", metric, lambda value: value * scale),
    )
    if is_accuracy:
        yield _Kind(
            f"{metric}_error",
            "error (%)",
            "Error per evaluation (logarithmic)",
            lambda run: _moments(run, "eval", metric, lambda value: (1 - value) * 100),
            logarithmic=True,
            axes=("images",),
        )
    if is_accuracy and any(run.steps for run in comparison.records):
        yield _Kind(
            "training_accuracy",
            "training accuracy (%)",
            "Running training accuracy",
            lambda run: _steps(run, "accuracy", 100.0),
            smoothed=True,
        )
    if all(run.steps for run in comparison.records if run.history):
        yield _Kind(
            "loss",
            "training loss",
            "Running training loss",
            lambda run: _steps(run, "loss", 1.0),
            smoothed=True,
        )
    else:
        yield _Kind(
            "loss",
            "training loss",
            "Training loss per epoch",
            lambda run: _moments(run, "train", "loss", lambda value: value),
        )


def _moments(run: Record, kind: str, name: str, convert: Callable[[float], float]) -> _Curve | None:
    found = [
        (moment.sample, moment.steady_seconds, convert(value))
        for moment, value in run.moments(kind, name)
        if isfinite(value)
    ]
    return _Curve(*(np.array(column) for column in zip(*found, strict=True))) if found else None


def _steps(run: Record, name: str, scale: float) -> _Curve | None:
    found = [
        (step.sample, step.seconds, getattr(step, name) * scale)
        for step in run.steps
        if isfinite(getattr(step, name))
    ]
    return _Curve(*(np.array(column) for column in zip(*found, strict=True))) if found else None


def _draw(comparison: Comparison, kind: _Kind, by: str) -> Drawn | None:
    read = {run.folder: kind.read(run) for run in comparison.records}
    longest = max((c.x(by)[-1] for c in read.values() if c), default=0.0)
    scale, unit = (1e-3, "thousands") if by == "images" else time_unit(float(longest))
    figure, axes = new_figure()
    window = smoothing_window([curve.images for curve in read.values() if curve])
    ends, banded = [], False
    for variant in comparison.variants:
        curves = [curve for run in variant.runs if (curve := read[run.folder])]
        if not curves:
            continue
        style = style_of(comparison, variant)
        if kind.smoothed:
            style |= {"marker": "none"}
            for curve in curves:
                color = style["color"]
                axes.plot(curve.x(by) * scale, curve.values, color=color, alpha=0.2, lw=0.7)
            curves = [_smoothed(curve, window) for curve in curves]
        for number, line in enumerate(_mean(curves, by)):
            label = None if number else variant.label
            axes.plot(line[0] * scale, line[1], label=label, **style)
            if line[2] is not None:
                banded = True
                axes.fill_between(line[0] * scale, *line[2], color=style["color"], alpha=0.18, lw=0)
        ends.append(f"{variant.label} {', '.join(f'{c.values[-1]:.4g}' for c in curves)}")
    if not ends:
        return None
    what = "images seen" if by == "images" else "training time"
    axes.set(xlabel=f"{what} ({unit})", ylabel=kind.label)
    if kind.logarithmic:
        make_logarithmic(axes)
    axes.set_xlim(left=0)
    if by == "images":
        _add_epochs(axes, comparison)
    add_legend(figure)
    title = f"{kind.title}, by {what}"
    if kind.smoothed:
        images = "image" if window == 1 else "images"
        title += f", smoothed over {window:,} {images}, faintly as measured"
    if banded:
        title += " (mean over seeds, band from the lowest to the highest)"
    alt = f"{title}. At the end: {'; '.join(ends)}."
    return f"{kind.name}_by_{by}", "training", title, alt, figure


def smoothing_window(images: list[np.ndarray]) -> int:
    """Return the number of images to smooth over: a twentieth of the longest run, at least 1."""
    return max(1, max((int(seen[-1]) for seen in images), default=0) // _WINDOWS)


def _smoothed(curve: _Curve, window: int) -> _Curve:
    """Return the mean at each point over the images up to it; fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(curve.values * np.diff(curve.images, prepend=0))])
    seen = np.concatenate([[0], curve.images])
    first = np.maximum(curve.images - window, 0)
    before = np.interp(first, seen, sums)
    values = (sums[1:] - before) / (curve.images - first)
    return _Curve(curve.images, curve.seconds, values)


_Line = tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]


def _mean(curves: list[_Curve], by: str) -> list[_Line]:
    """Return the mean over seeds with their range; every curve by itself if they do not align."""
    aligned = all(np.array_equal(curve.images, curves[0].images) for curve in curves)
    if len(curves) == 1 or not aligned:
        return [(curve.x(by), curve.values, None) for curve in curves]
    values = np.stack([curve.values for curve in curves])
    x = np.mean([curve.x(by) for curve in curves], axis=0)
    return [(x, values.mean(0), (values.min(0), values.max(0)))]


def make_logarithmic(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers."""
    drawn = [line.get_ydata() for line in axes.get_lines()]
    if not any((np.asarray(values) > 0).any() for values in drawn):
        return
    axes.set_yscale("log", nonpositive="mask")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    low, high = axes.get_ylim()
    if high / low > 6:  # otherwise all numbers between powers of ten have room, and are needed
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _add_epochs(axes: Axes, comparison: Comparison) -> None:
    """Add an axis of epochs at the top if all epochs have the same length."""
    lengths = {
        round(moment.sample / moment.epoch)
        for run in comparison.records
        for moment in run.history
        if moment.epoch and moment.kind == "train"
    }
    if len(lengths) == 1:
        images = lengths.pop() / 1000
        scales = (lambda x: np.divide(x, images), lambda x: np.multiply(x, images))
        above = axes.secondary_xaxis("top", functions=scales)
        above.set_xlabel("epochs")
        above.xaxis.set_major_locator(MaxNLocator(integer=True))
