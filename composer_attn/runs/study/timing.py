"""Measuring the variants of a study in turns: before it, for an estimate, and at its end."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from composer.core import Time, TimeUnit
from omegaconf import OmegaConf

from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.study.processes import run_process
from composer_attn.runs.training.step_times import (
    FILE,
    StepTimes,
    parse_step_times,
    read_step_times,
)
from composer_attn.runs.training.summary import FILE as SUMMARY

LOG = "timing.log"
_BRIEFLY, _THOROUGHLY = 3.0, 30.0  # seconds, over all variants


def time_briefly(
    variants: Sequence[Variant], out: Path, ranks: int, lock: int, imports: Sequence[str]
) -> dict[str, StepTimes]:
    """Return the times of a few steps of every variant, by name; of none if one cannot be run."""
    first = _first_of_each(variants)
    times = _measure(first, out, ranks, lock, imports, _BRIEFLY)
    return dict(zip((variant.name for variant in first), times, strict=False))


def not_timed(variants: Sequence[Variant]) -> list[Variant]:
    """List the first runs of the trained variants, unless all of them were measured together."""
    trained = [v for v in _first_of_each(variants) if (v.folder / SUMMARY).is_file()]
    before = [read_step_times(variant.folder / FILE) for variant in trained]
    together = all(before) and len({times.measurement for times in before if times}) == 1
    return [] if together else trained


def time_thoroughly(
    trained: Sequence[Variant], out: Path, ranks: int, lock: int, imports: Sequence[str]
) -> bool:
    """Measure runs, and write ``step_times.json`` to their folders; return whether it worked."""
    times = _measure(trained, out, ranks, lock, imports, _THOROUGHLY)
    for variant, each in zip(trained, times, strict=False):
        each.write(variant.folder)
    return bool(times)


def estimate(config: RunConfig, times: StepTimes) -> float | None:
    """Return the seconds that a run takes, from a few of its steps; ``None`` if not known."""
    steps = steps_of(config, times.batches)
    if steps is None:
        return None
    step = _with_loading(median(times.steps), times.loading_seconds, config.train_dataset)
    seconds = times.building_seconds + steps * step
    if config.eval_dataset and times.evaluation_batches:
        interval = _in_batches(config.eval_interval, config, times.batches, steps)
        batch = _with_loading(times.evaluation_seconds, times.loading_seconds, config.eval_dataset)
        seconds += ceil(steps / max(interval or steps, 1)) * times.evaluation_batches * batch
    return seconds


def steps_of(config: RunConfig, batches: int | None) -> int | None:
    """Return the number of training steps of a run, with the number of batches of an epoch."""
    found = _in_batches(config.max_duration, config, batches, None)
    return None if found is None else ceil(found)


def _in_batches(
    text: str, config: RunConfig, batches: int | None, whole: int | None
) -> float | None:
    time: Any = Time.from_timestring(text)
    scale: dict[Any, float | None] = {
        TimeUnit.EPOCH: batches,
        TimeUnit.BATCH: 1,
        TimeUnit.SAMPLE: 1 / config.batch_size,
        TimeUnit.DURATION: whole,
    }
    factor = scale.get(time.unit)
    return None if factor is None else time.value * factor


def _with_loading(step: float, loading: float, section: dict[str, Any] | None) -> float:
    """Return the seconds of a step, of which workers that load batches may be the slower part."""
    workers = (section or {}).get("num_workers") or 0
    return max(step, loading / workers) if workers else step + loading


def _first_of_each(variants: Sequence[Variant]) -> list[Variant]:
    first: dict[str, Variant] = {}
    for variant in variants:
        first.setdefault(variant.name, variant)
    return list(first.values())


def _measure(
    variants: Sequence[Variant],
    out: Path,
    ranks: int,
    lock: int,
    imports: Sequence[str],
    seconds: float,
) -> list[StepTimes]:
    """Measure variants on the part of a batch that one rank has; return nothing if it fails."""
    configs = [
        replace(variant.config, batch_size=max(variant.config.batch_size // ranks, 1))
        for variant in variants
    ]
    asked = {
        "imports": list(imports),
        "seconds": seconds,
        "configs": [yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(c))) for c in configs],
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / FILE
        command = [sys.executable, "-m", "composer_attn.runs.study.timing_process", str(output)]
        if run_process(command, out / LOG, lock, said=yaml.safe_dump(asked)) != 0:
            return []
        return [parse_step_times(values) for values in json.loads(output.read_text())]
