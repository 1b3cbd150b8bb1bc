"""Draw the latencies of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_attn.runs.benchmark.measure import Row
from composer_attn.runs.report.style import INK, RC, SERIES


def draw(rows: Sequence[Row], settings: Mapping[str, Any], path: Path) -> None:
    """Draw the median latency of each variant, with quartiles, in one panel per batch size."""
    names = list(dict.fromkeys(row.variant for row in rows))
    batches = list(dict.fromkeys(row.batch for row in rows))
    with rc_context(RC):
        size = (2.4 + 3.4 * len(batches), 1.6 + 0.42 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            _panel(axes, [row for row in rows if row.batch == batch], batch)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        title = "{model}, {attention}, {image}, {device}, threads: {threads}".format(**settings)
        figure.suptitle(f"{title}\nlatency; lines: quartiles; in brackets: relative to plain")
        figure.savefig(path, facecolor="white", dpi=130)


def _panel(axes: Axes, rows: Sequence[Row], batch: int) -> None:
    largest = max(cast(float, row.upper_quartile_ms) for row in rows if row.median_ms is not None)
    for place, row in enumerate(rows):
        if row.median_ms is None:
            axes.text(0.02 * largest, place, "not available", va="center", fontsize=8)
            continue
        median, low, high = row.median_ms, row.lower_quartile_ms, row.upper_quartile_ms
        spread = [[median - cast(float, low)], [cast(float, high) - median]]
        colour = SERIES[0] if row.variant.startswith("plain") else SERIES[1]
        axes.barh(place, median, 0.7, color=colour, xerr=spread, ecolor=INK)
        label = f"{row.images_per_second:,.1f} images/s ({row.ratio:.2f})"
        axes.text(cast(float, high) + 0.02 * largest, place, label, va="center", fontsize=8)
    axes.set_xlim(0, 1.75 * largest)  # leaves space for the labels
    axes.set_xlabel(f"ms, batch {batch}")
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)
