"""Plots of the metric against its costs, with the frontier."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from composer_attn.runs.report.comparison import Comparison, SeedStatistics, VariantResults
from composer_attn.runs.report.speeds import Quartiles
from composer_attn.runs.report.style import INK, add_legend, new_figure, style_of, time_unit

_Drawn = tuple[str, str, str, str, Figure]


@dataclass(frozen=True)
class _Cost:
    """A cost.

    Attributes:
        name: part of the plot's file name.
        label: label of the axis.
        unit: its unit.
        of: returns the cost of a variant in that unit: low, middle and high.
    """

    name: str
    label: str
    unit: str
    of: Callable[[VariantResults], tuple[float, float, float] | None]


def cost_plots(comparison: Comparison) -> Iterator[_Drawn]:
    """Yield a plot for each cost that is known, with the variants that no other outdoes."""
    headline = comparison.headline
    factor, unit = headline.scale, headline.axis
    for cost in _costs(comparison):
        figure, axes = new_figure()
        points = []
        for variant in comparison.variants:
            result, ends = comparison.result(variant), cost.of(variant)
            if result.mean is None or ends is None:
                continue
            style = style_of(comparison, variant) | {"linestyle": "none"}
            low, x, high = ends
            y = result.mean * factor
            axes.plot(x, y, label=variant.label, **style, ms=9)
            interval = comparison.interval(variant)
            heights = (
                [[y - interval.low * factor], [interval.high * factor - y]] if interval else None
            )
            widths = [[x - low], [high - x]]
            color = style["color"]
            axes.errorbar(
                x, y, heights, widths, capsize=3, color=color, linestyle="none", alpha=0.6
            )
            points.append((x, y, variant.label))
        if not points:
            continue
        best = frontier(points)
        if len(best) > 1:
            x_of, y_of = [p[0] for p in best], [p[1] for p in best]
            axes.plot(x_of, y_of, color=INK, lw=1, linestyle=(0, (4, 3)), alpha=0.5, zorder=0)
        axes.set(xlabel=f"{cost.label} ({cost.unit})", ylabel=unit)
        axes.margins(0.2)
        # Costs that are nearly equal have long numbers, in which an offset would hide them.
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="x", useOffset=False)
        add_legend(figure)
        title = f"{headline.title} against {cost.label}"
        told = "; ".join(f"{label} {y:.4g} at {x:.4g}" for x, y, label in points)
        alt = f"{title}. {told}. Pareto-optimal: {', '.join(p[2] for p in best)}."
        yield f"{comparison.metric}_by_{cost.name}_cost", "cost", title, alt, figure


def frontier(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return the points (cost, value, label) that no other outdoes in both, from the cheapest on.

    Example:
        >>> frontier([(1, 90, "a"), (2, 80, "b"), (3, 95, "c")])
        [(1, 90, 'a'), (3, 95, 'c')]
    """
    found: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return found


def _costs(comparison: Comparison) -> Iterator[_Cost]:
    seconds = [found for v in comparison.variants if (found := _training(v).mean) is not None]
    scale, unit = time_unit(max(seconds, default=0.0))
    yield _Cost("seconds", "training time", unit, lambda v: _ends(_training(v), scale))
    yield _Cost(
        "latency",
        "time of the prediction for one image",
        "milliseconds",
        lambda v: _quartiles(comparison.speed(v).latency, 1e3),
    )
    yield _Cost(
        "memory",
        "memory kept for backward",
        "MiB",
        lambda v: _mebibytes(comparison.speed(v).kept_bytes),
    )
    yield _Cost(
        "parameters",
        "parameters",
        "millions",
        lambda v: _ends(v.closing("parameters_after"), 1e-6),
    )


def _training(variant: VariantResults) -> SeedStatistics:
    """Return the training time without first steps, which build kernels."""

    def steady(summary: dict) -> float | None:
        seconds = summary.get("seconds")
        return None if seconds is None else seconds - summary.get("startup_seconds", 0.0)

    return variant.figure(lambda run: steady(run.summary or {}))


def _ends(figure: SeedStatistics, scale: float) -> tuple[float, float, float] | None:
    if figure.mean is None:
        return None
    spread = figure.spread or 0.0
    return (
        (figure.mean - spread) * scale,
        figure.mean * scale,
        (figure.mean + spread) * scale,
    )


def _quartiles(found: Quartiles | None, scale: float) -> tuple[float, float, float] | None:
    return (found.low * scale, found.median * scale, found.high * scale) if found else None


def _mebibytes(kept: int | None) -> tuple[float, float, float] | None:
    return None if kept is None else (kept / 2**20, kept / 2**20, kept / 2**20)
