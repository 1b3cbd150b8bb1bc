"""Colours and lines: the same in files, on white, and in the page, in light and in dark."""

import io
import re
from typing import Any

from matplotlib.figure import Figure

from composer_attn.runs.report.comparison import Comparison, VariantResults

INK, GRID = "#1b1f24", "#d5d9de"
# In light mode; told apart by people with any kind of colour blindness (after Okabe and Ito), and
# by their lines and markers as well. The page has a brighter set for dark mode.
SERIES = ("#5b6470", "#0072b2", "#d55e00", "#00805e", "#a8497f", "#7a5c00")
_LINES = (
    "solid",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
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
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's own font
    "svg.hashsalt": "composer_attn",  # the same bytes for the same runs
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def series(index: int) -> dict[str, Any]:
    """Return colour, line and marker of a plot's series."""
    i = index % len(SERIES)
    return {"color": SERIES[i], "linestyle": _LINES[i], "marker": _MARKERS[i]}


def style_of(comparison: Comparison, variant: VariantResults) -> dict[str, Any]:
    """Return how a variant is drawn, alike in all plots."""
    return series(comparison.variants.index(variant))


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element that takes its colours from the page's style."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several plots share a page: their ids must not meet.
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
