"""The results as CSV and JSON, for further processing."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.contrast import Contrast
from composer_attn.runs.report.csv_file import write_csv
from composer_attn.runs.report.intervals import Interval
from composer_attn.runs.report.records import Record
from composer_attn.runs.report.speeds import Quartiles, Speed

# Keys of a run's summary.
_KEYS = (
    "attended_layers", "parameters_before", "parameters_after", "macs", "images_per_second",
    "seconds", "peak_memory", "skipped_images", "ranks",
)  # fmt: skip


def write_results(comparison: Comparison, out: Path) -> None:
    """Write ``results.csv``, with one row per run, and ``results.json``, with everything."""
    rows = run_rows(comparison)
    write_csv(out / "results.csv", rows)
    content = {
        "metric": comparison.metric,
        "variants": variant_rows(comparison),
        "runs": rows,
        "notices": comparison.notices,
        "published": [asdict(row) for row in comparison.published],
    }
    (out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """List all runs with their figures; ``None`` for missing ones."""
    metrics = dict.fromkeys(
        name for run in comparison.records for name in (run.summary or {}).get("metrics") or {}
    )
    return [
        {
            "variant": variant.label,
            "seed": run.config.get("seed"),
            "state": "finished" if run.summary else "unfinished",
            "right_images": run.counts[0] if run.counts else None,
            "images": run.counts[1] if run.counts else None,
            **{name: run.metric(name) for name in metrics},
            **{key: (run.summary or {}).get(key) for key in _KEYS},
            "folder": str(run.folder),
            "command": command_of(run),
        }
        for variant in comparison.variants
        for run in variant.runs
    ]


def variant_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """List all variants with their figures over seeds; ``None`` for missing ones."""
    return [
        {
            "variant": variant.label,
            "attention": variant.setting or None,
            "runs": len(variant.runs),
            "finished": sum(run.summary is not None for run in variant.runs),
            **_spread(comparison.metric, comparison.result(variant)),
            **_ends(comparison.metric, comparison.interval(variant)),
            "difference_to_plain": comparison.difference(variant),
            **_contrast(comparison.contrast(variant)),
            "parameters": variant.closing("parameters_after").mean,
            "attended_layers": variant.closing("attended_layers").mean,
            "macs": variant.closing("macs").mean,
            **_spread("images_per_second", variant.closing("images_per_second")),
            **_speed(comparison.speed(variant)),
            "peak_memory": variant.closing("peak_memory").mean,
            "seconds": variant.closing("seconds").mean,
        }
        for variant in comparison.variants
    ]


def command_of(run: Record) -> str:
    """Return the command that trains a run's config again from the start."""
    if not run.config:
        return ""
    # Otherwise a run of a study would resume from its last checkpoint, with nothing left to train.
    elsewhere = " save_folder=runs/again" if run.config.get("autoresume") else ""
    return f"composer-attn train {run.folder / 'config.yaml'}{elsewhere}"


def _spread(name: str, figure: Any) -> dict[str, Any]:
    return {name: figure.mean, f"{name}_spread": figure.spread}


def _ends(name: str, interval: Interval | None) -> dict[str, Any]:
    return {
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }


def _contrast(found: Contrast | None) -> dict[str, Any]:
    return {
        **_ends("difference", found.interval if found else None),
        "difference_is": found.verdict if found else None,
        "difference_interval_of": found.basis or None if found else None,
    }


def _speed(found: Speed) -> dict[str, Any]:
    return {
        **_quartiles("step_seconds", found.step),
        **_quartiles("speed_relative_to_plain", found.relative),
        **_quartiles("latency_seconds", found.latency),
        "speed_measured": found.how,
        "kept_bytes": found.kept_bytes,
    }


def _quartiles(name: str, found: Quartiles | None) -> dict[str, Any]:
    return {
        name: found.median if found else None,
        f"{name}_lower_quartile": found.low if found else None,
        f"{name}_upper_quartile": found.high if found else None,
    }
