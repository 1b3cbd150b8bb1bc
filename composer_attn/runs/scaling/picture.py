"""The figure of a search: accuracy against operations, one dimension at a time and all together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from composer_attn.runs.report.style import INK, RC, inline_svg, series
from composer_attn.runs.scaling.results import TOGETHER, Line, Result, Results

NAME = "accuracy_by_macs"
# The places of the lines among the series of the report; the first is grey.
_SERIES = {"depth": 1, "width": 2, "resolution": 3, TOGETHER: 4}
_LABELS = {name: name if name == TOGETHER else f"{name} alone" for name in _SERIES}
_OTHER = series(0)["color"]
_TICKS = (0, 20, 40, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 100)
_OFFSET = 0.5  # percent, so that an error of 0 is on the scale


def draw(results: Results, folder: Path) -> tuple[str, str]:
    """Draw the figure, and write it as SVG and PNG.

    Returns:
        The SVG element for the page, in its colours, and the alternative text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alt = describe(results)
    with rc_context(RC):
        figure = Figure(figsize=(6.8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, results)
        figure.savefig(folder / f"{NAME}.svg", facecolor="white", metadata={"Date": None})
        figure.savefig(folder / f"{NAME}.png", facecolor="white", dpi=160)
        return inline_svg(figure, NAME, alt), alt


def describe(results: Results) -> str:
    """Describe the figure in words, with the figures of each line."""
    lines = [
        f"{line.name} {', '.join(_point(result) for result in line.points if result.accuracies)}"
        for line in results.lines
    ]
    return f"Accuracy against multiply-accumulates. {'; '.join(lines)}."


def _point(result: Result) -> str:
    return f"{_percent(result):.1f}% at {_si(result.candidate.size.macs)}"


def _draw(axes: Axes, results: Results) -> None:
    lined = {point.candidate.name for line in results.lines for point in line.points}
    others = [r for r in results.grid if r.candidate.name not in lined and r.accuracies]
    if others:
        xs, ys = [_macs(r) for r in others], [_percent(r) for r in others]
        style = {"color": _OTHER, "linestyle": "none", "marker": "o", "ms": 5, "mfc": "none"}
        axes.plot(xs, ys, label="other divisions of the budget", zorder=2, **style)
    for line in results.lines:
        _draw_line(axes, line)
    _draw_budget(axes, results)
    if results.recipe.accuracies:
        x, y = _macs(results.recipe), _percent(results.recipe)
        axes.plot(x, y, "o", color=INK, ms=8, zorder=5)
        _draw_errors(axes, [results.recipe], INK)
        axes.annotate("the recipe", (x, y), (-12, 16), textcoords="offset points", fontsize=10)
    _ring_best(axes, results)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _si(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)
    # By their error, so that one poor network does not hide the differences between the good ones.
    axes.set_yscale("function", functions=(_by_error, _from_error))
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    axes.set_ylim(low, min(high, 100.2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set(
        xlabel="multiply-accumulates of an image (log scale)",
        ylabel="accuracy (%; log scale of the error)",
    )
    handles, labels = axes.get_legend_handles_labels()
    # The lines first, in the order of their columns.
    order = sorted(range(len(labels)), key=lambda i: labels[i] not in _LABELS.values())
    axes.figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        fontsize=10,
        ncols=2,
    )


def _by_error(percent: Any) -> Any:
    return -np.log(np.maximum(100 + _OFFSET - percent, 1e-3))


def _from_error(value: Any) -> Any:
    return 100 + _OFFSET - np.exp(-value)


def _draw_line(axes: Axes, line: Line) -> None:
    points = [point for point in line.points if point.accuracies]
    if not points:
        return
    style = series(_SERIES[line.name]) | {"ms": 7}
    if line.name == TOGETHER:
        style |= {"linestyle": "solid", "linewidth": 3, "zorder": 4}
    xs, ys = [_macs(p) for p in points], [_percent(p) for p in points]
    axes.plot(xs, ys, label=_LABELS[line.name], **style)
    own = [point for point in points if point.candidate.phi]  # the recipe is in every line
    _draw_errors(axes, own, style["color"])


def _draw_errors(axes: Axes, results: Sequence[Result], color: str) -> None:
    xs, ys = [_macs(r) for r in results], [_percent(r) for r in results]
    errors = [100 * result.error for result in results]
    axes.errorbar(
        xs, ys, errors, color=color, linestyle="none", linewidth=5, alpha=0.25, zorder=1
    )  # fmt: skip


def _draw_budget(axes: Axes, results: Results) -> None:
    budget = results.plan.terms.budget
    x = results.plan.recipe.size.macs * budget
    axes.axvline(x, color=_OTHER, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"{budget:g}\N{MULTIPLICATION SIGN} operations",
        (x, 0),
        (4, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        va="bottom",
        fontsize=9,
        color=_OTHER,
    )


def _ring_best(axes: Axes, results: Results) -> None:
    best = results.best
    if best is None:
        return
    x, y = _macs(best), _percent(best)
    axes.plot(
        x, y, "o", ms=15, mfc="none", mec=INK, mew=1.5, label="most accurate in budget", zorder=6
    )


def _macs(result: Result) -> int:
    return result.candidate.size.macs


def _percent(result: Result) -> float:
    return 100 * (result.accuracy or 0.0)


def _si(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"
