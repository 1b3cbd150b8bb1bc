"""The HTML page: figures first, then plots, then the details of each run."""

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import yaml

from composer_attn import __version__
from composer_attn.runs.report.comparison import Comparison, SeedStatistics, VariantResults
from composer_attn.runs.report.excitation_plots import looked_at
from composer_attn.runs.report.headline import headline
from composer_attn.runs.report.numerals import (
    NONE,
    count,
    duration,
    images_ahead,
    milliseconds,
    milliseconds_range,
    number,
    plain,
    points,
    points_range,
    ratio_range,
    share_range,
    si,
)
from composer_attn.runs.report.plots import Plot
from composer_attn.runs.report.published import PublishedFigure
from composer_attn.runs.report.results import command_of
from composer_attn.runs.report.speeds import Quartiles, how_measured
from composer_attn.runs.report.templates import templates_of

_MOST_COUNTS = 5  # seeds whose counts are written out


def render(comparison: Comparison, plots: Sequence[Plot], title: str | None = None) -> str:
    """Return the self-contained HTML page of a comparison."""
    environment = templates_of("composer_attn.runs.report")
    variants = [_variant(comparison, variant, i) for i, variant in enumerate(comparison.variants)]
    return environment.get_template("page.html.j2").render(
        title=title or _title(comparison),
        lead=headline(comparison),
        metric=comparison.headline.label,
        of_images=comparison.headline.of_images,
        variants=variants,
        settings=[v for v in variants if v["setting"] not in ("", v["label"])],
        notices=comparison.notices,
        how_measured=how_measured(comparison.records),
        sections={
            key: [plot for plot in plots if plot.section == key]
            for key in ("training", "cost", "confusion", "examples", "excitation", "heat_maps")
        },
        gates=[row for variant in comparison.variants for row in _gates(variant)],
        published=[_published(comparison, row) for row in comparison.published],
        published_names=_published_names(comparison),
        networks=sorted({_network(run.config) for run in comparison.records if run.config}),
        version=__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _variant(comparison: Comparison, variant: VariantResults, index: int) -> dict[str, Any]:
    result, found = comparison.result(variant), comparison.contrast(variant)
    parameters = variant.closing("parameters_after").mean
    added = variant.figure(lambda run: _added(run.summary or {})).mean
    speed, rate = comparison.speed(variant), variant.closing("images_per_second")
    percent = comparison.headline.percent
    shown = {
        "result": _value(result, percent),
        "spread": _spread(result, percent),
        "counts": _counts(variant),
        "range": share_range(comparison.interval(variant), percent),
        "difference": points(found.estimate, percent) if found else "",
        "difference_range": points_range(found.interval, percent) if found else "",
        "ahead": images_ahead(found.images) if found else "",
        "verdict": found.verdict if found else "",
        "parameters": count(parameters),
        "added": f"{added:+,.0f}" if added else "",
        "rate": number(rate.mean, "{:,.0f}"),
        "speed": number(_median(speed.relative), "{:.2f}\N{MULTIPLICATION SIGN}"),
        "speed_range": ratio_range(speed.relative),
    }
    return shown | {
        "label": variant.label,
        "setting": variant.setting,
        "series": index % 6,
        "anchor": f"how-{index}",
        "seeds": len(variant.runs),
        "cells": _cells(comparison, variant, shown),
        "runs": [_run(run) for run in variant.runs],
    }


_Cell = tuple[float | None, str, tuple[str, ...]]


def _cells(comparison: Comparison, variant: VariantResults, shown: dict[str, str]) -> list[_Cell]:
    """Return the cells of a variant's row: a key to sort by, a text, and small lines below it."""
    found, speed = comparison.contrast(variant), comparison.speed(variant)
    rate, seconds = variant.closing("images_per_second").mean, variant.closing("seconds").mean
    memory, macs = variant.closing("peak_memory").mean, variant.closing("macs").mean
    parameters = variant.closing("parameters_after").mean
    return [
        (
            comparison.result(variant).mean,
            f"{shown['result']} {shown['spread']}".strip(),
            (shown["counts"], shown["range"]),
        ),
        (
            found.estimate if found else None,
            shown["difference"] or NONE,
            (shown["difference_range"], shown["verdict"]),
        ),
        (parameters, shown["parameters"], ()),
        (macs, si(macs), ()),
        _timed(speed.step),
        (_median(speed.relative), shown["speed"], (shown["speed_range"],)),
        _timed(speed.latency),
        (speed.kept_bytes, number(speed.kept_bytes, "{:,.1f}", 1 / 2**20), ()),
        (rate, shown["rate"], ()),
        (seconds, duration(seconds), ()),
        (memory, number(memory, "{:,.0f}", 1 / 2**20), ()),
    ]


def _timed(found: Quartiles | None) -> _Cell:
    return _median(found), milliseconds(_median(found)), (milliseconds_range(found),)


def _median(found: Quartiles | None) -> float | None:
    return found.median if found else None


def _run(run: Any) -> dict[str, Any]:
    config = {key: value for key, value in run.config.items() if value not in (None, {}, [])}
    return {
        "name": run.name,
        "state": "finished" if run.summary else "no summary",
        "folder": str(run.folder),
        "command": command_of(run),
        "config": yaml.safe_dump(config, sort_keys=False) if config else "",
        "summary": json.dumps(run.summary, indent=2) if run.summary else "",
    }


def _gates(variant: VariantResults) -> list[dict[str, str]]:
    """List the figures of every layer of a variant at the last evaluation."""
    found = looked_at(variant)
    rows = []
    for layer in found.layers if found else ():
        figures = layer.figures
        saturated = figures["saturated_low"] + figures["saturated_high"]
        rows.append(
            {
                "variant": variant.label,
                "layer": layer.name,
                "channels": str(layer.mean.shape[1]),
                "mean": f"{figures['mean']:.3f}",
                "std": f"{figures['std']:.3f}",
                "between": f"{layer.std[-1].mean():.3f}",
                "saturated": f"{saturated:.1%}",
                "dead": f"{figures['dead']:.1%}",
                "entropy": f"{figures['entropy']:.4f}",
            }
        )
    return rows


def _published(comparison: Comparison, row: PublishedFigure) -> dict[str, Any]:
    """Return a published figure beside ours for each variant."""
    cells = []
    for name in _published_names(comparison):
        own = [
            variant.figure(
                lambda run: (
                    run.metric("accuracy")
                    if row.here == "accuracy"
                    else (run.summary or {}).get(row.here)
                )
            ).mean
            for variant in comparison.variants
            if variant.name == name and _is_of(variant, row)
        ]
        scaled = [value * row.scale for value in own if value is not None]
        theirs = row.values.get(name)
        cells.append(
            {
                "theirs": NONE if theirs is None else plain(theirs),
                "ours": ", ".join(plain(value) for value in scaled) or NONE,
            }
        )
    return {"network": row.network, "figure": row.figure, "source": row.source, "cells": cells}


def _published_names(comparison: Comparison) -> list[str]:
    """List the variants with published figures, in the order of the table."""
    return list(dict.fromkeys(name for row in comparison.published for name in row.values))


def _is_of(variant: VariantResults, row: PublishedFigure) -> bool:
    models = [run.config.get("model") or {} for run in variant.runs]
    return any(str(m.get("name")).removeprefix("timm/") == row.network for m in models)


def _title(comparison: Comparison) -> str:
    networks = {_network(run.config) for run in comparison.records if run.config}
    names = [variant.label for variant in comparison.variants]
    about = f" \N{EM DASH} {', '.join(sorted(networks))}" if networks else ""
    return f"{', '.join(names[:-1])} and {names[-1]}{about}" if len(names) > 1 else names[0] + about


def _network(config: dict[str, Any]) -> str:
    model = (config.get("model") or {}).get("name", "?")
    return f"{model} on {(config.get('train_dataset') or {}).get('name', '?')}"


def _counts(variant: VariantResults) -> str:
    """Write how many images a variant classifies correctly, with each of its seeds."""
    found = [run.counts for run in variant.runs if run.counts]
    if not found or len(found) > _MOST_COUNTS or len({images for _, images in found}) > 1:
        return ""
    right = ", ".join(f"{right:,}" for right, _ in found)
    return f"{right} of {found[0][1]:,} images"


def _value(figure: SeedStatistics, percent: bool) -> str:
    return number(figure.mean, "{:.2%}" if percent else "{:.4f}")


def _spread(figure: SeedStatistics, percent: bool) -> str:
    if figure.spread is None:
        return ""
    return "\N{PLUS-MINUS SIGN} " + (
        f"{figure.spread * 100:.2f}" if percent else f"{figure.spread:.4f}"
    )


def _added(summary: dict[str, Any]) -> float | None:
    if "parameters_after" not in summary or "parameters_before" not in summary:
        return None
    return summary["parameters_after"] - summary["parameters_before"]
