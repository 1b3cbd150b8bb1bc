"""The plots of a comparison, as files and as SVG with the colours of the page."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.excitation_plots import excitation_plots
from composer_attn.runs.report.records import Record
from composer_attn.runs.report.style import RC, add_legend, inline_svg, style_of
from composer_attn.runs.training.history import Moment


@dataclass(frozen=True)
class Plot:
    """One plot.

    Attributes:
        name: name of its files.
        section: section of the page: ``training``, ``cost`` or ``excitation``.
        title: title of the plot.
        alt: alternative text, with the main figures.
        svg: the SVG element for the page.
    """

    name: str
    section: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class _Axis:
    label: str
    get: Callable[[Record, Moment], float]


_IMAGES = _Axis("images seen (thousands)", lambda run, moment: moment.sample / 1000)
_TIME = _Axis("training time (minutes)", lambda run, moment: moment.seconds / 60)


def draw(comparison: Comparison, folder: Path) -> list[Plot]:
    """Draw all plots for which there is data, and write them as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.svg"), *folder.glob("*.png")):  # from an earlier report
        old.unlink()
    plots = []
    with rc_context(RC):
        drawn = [*_curves(comparison), *_costs(comparison), *excitation_plots(comparison)]
        for name, section, title, alt, figure in drawn:
            figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", facecolor="white", dpi=160)
            plots.append(Plot(name, section, title, alt, inline_svg(figure, name, alt)))
    return plots


def _curves(comparison: Comparison) -> Iterable[tuple[str, str, str, str, Figure]]:
    metric = comparison.metric
    percent = 100.0 if metric.endswith("accuracy") else 1.0
    unit = f"{metric.replace('_', ' ')}{' (%)' if percent == 100 else ''}"
    kinds = (("eval", metric, unit, percent), ("train", "loss", "training loss", 1.0))
    for kind, figure_name, label, scale in kinds:
        for axis, by in ((_IMAGES, "images"), (_TIME, "time")):
            figure, axes = _new()
            ends = _draw_curves(axes, comparison, kind, figure_name, scale, axis)
            if not ends:
                continue
            axes.set(xlabel=axis.label, ylabel=label)
            axes.set_xlim(left=0)
            if by == "images":
                _add_epochs(axes, comparison)
            add_legend(figure)
            short = label.split(" (")[0]
            title = f"{short[0].upper()}{short[1:]} per epoch, by {axis.label.split(' (')[0]}"
            alt = f"{title}. At the end: {'; '.join(ends)}."
            yield f"{figure_name}_by_{by}", "training", title, alt, figure


def _draw_curves(
    axes: Axes, comparison: Comparison, kind: str, name: str, scale: float, axis: _Axis
) -> list[str]:
    """Draw a line for every run; return a text with the final values of each variant."""
    ends = []
    for variant in comparison.variants:
        style = style_of(comparison, variant)
        last: list[float] = []
        for run in variant.runs:
            points = [
                (axis.get(run, moment), value * scale)
                for moment, value in run.moments(kind, name)
                if isfinite(value)
            ]
            if points:
                label = None if last else variant.label
                last.append(points[-1][1])
                axes.plot(*zip(*points, strict=True), label=label, **style)
        if last:
            ends.append(f"{variant.label} {', '.join(f'{value:.4g}' for value in last)}")
    return ends


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


def _costs(comparison: Comparison) -> Iterable[tuple[str, str, str, str, Figure]]:
    """Draw the metric against its cost in time and parameters."""
    percent = 100.0 if comparison.metric.endswith("accuracy") else 1.0
    unit = comparison.metric.replace("_", " ") + (" (%)" if percent == 100 else "")
    costs = (
        ("seconds", 1 / 60, "training time (minutes)"),
        ("parameters_after", 1e-6, "parameters (millions)"),
    )
    for key, scale, label in costs:
        figure, axes = _new()
        told = []
        for variant in comparison.variants:
            result, cost = comparison.result(variant), variant.closing(key)
            if result.mean is None or cost.mean is None:
                continue
            style = style_of(comparison, variant) | {"linestyle": "none"}
            x, y = cost.mean * scale, result.mean * percent
            axes.plot(x, y, label=variant.label, **style, ms=9)
            if result.spread is not None:
                xerr, yerr = (cost.spread or 0) * scale, result.spread * percent
                color = style["color"]
                axes.errorbar(x, y, yerr, xerr, capsize=3, color=color, linestyle="none")
            told.append(f"{variant.label} {y:.4g} at {x:.4g}")
        if told:
            axes.set(xlabel=label, ylabel=unit)
            axes.margins(0.2)
            add_legend(figure)
            title = f"{unit.split(' (')[0].capitalize()} against {label.split(' (')[0]}"
            name = f"{comparison.metric}_by_{key.removesuffix('_after')}_cost"
            yield name, "cost", title, f"{title}. {'; '.join(told)}.", figure


def _new() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    return figure, figure.add_subplot()
