"""Colours and line styles of plots, in files and in the page's light and dark modes."""

import io
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_attn.runs.report.comparison import Comparison, VariantResults

INK, GRID = "#1b1f24", "#d5d9de"
# For light mode; distinguishable with any kind of colour blindness (after Okabe and Ito), and also
# by line and marker. The page has a brighter set for dark mode.
SERIES = ("#5b6470", "#0072b2", "#d55e00", "#00805e", "#a8497f", "#7a5c00")
_LINES = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
_LEGEND_WIDTH = 66  # characters
_MARKERS = ("o", "s", "^", "D", "v", "P")

RC: Any = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 11,
    "grid.color": GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # keep text as text: selectable, and in the font of the page
    "svg.hashsalt": "composer_attn",  # reproducible files
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def series(index: int) -> dict[str, Any]:
    """Return colour, line style and marker of a series."""
    i = index % len(SERIES)
    return {"color": SERIES[i], "linestyle": _LINES[i], "marker": _MARKERS[i]}


def style_of(comparison: Comparison, variant: VariantResults) -> dict[str, Any]:
    """Return the style of a variant, the same in all plots."""
    return series(comparison.variants.index(variant))


def new_figure() -> tuple[Figure, Axes]:
    """Return a figure with axes, in the size of all plots."""
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    return figure, figure.add_subplot()


def time_unit(longest: float) -> tuple[float, str]:
    """Return the factor from seconds to a unit, and its name.

    Args:
        longest: the longest time, in seconds.

    Example:
        >>> time_unit(90), time_unit(7200)[1]
        ((1.0, 'seconds'), 'hours')
    """
    if longest < 300:
        return 1.0, "seconds"
    return (1 / 60, "minutes") if longest < 7200 else (1 / 3600, "hours")


def add_legend(figure: Figure) -> None:
    """Add a legend above the axes, in as many columns as its longest label leaves room for."""
    drawn: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    if drawn:
        longest = max(map(len, drawn))
        columns = max(1, min(4, len(drawn), _LEGEND_WIDTH // (longest + 7)))
        figure.legend(
            list(drawn.values()), list(drawn), loc="outside upper left", ncols=columns, fontsize=10
        )


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element with colours from the page's style sheet."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several plots share a page: make their ids unique.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;?|font: ([\d.]+px) [^;\"]*", _font, svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    view = box[0] if box else ""
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg {view} role="img" aria-label="{label}">{body}'


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}" if match[1] else ""


_VARIABLES = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
