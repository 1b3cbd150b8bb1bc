"""Caveats for the reader of a comparison."""

import json
from collections.abc import Iterator
from math import isfinite

from composer_attn.runs.components.attention_algorithms import COMPOSERS
from composer_attn.runs.components.variants import PLAIN
from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.records import Record, recipe_values

_SIZES = ("_small", "_medium", "_large")


def notices_of(comparison: Comparison) -> Iterator[str]:
    """Yield what is missing, broken or not comparable, most important first."""
    for record in comparison.records:
        yield from _of_run(record)
    yield from _of_recipes(comparison)
    for key, what in (("ranks", "numbers of processes"), ("versions", "versions")):
        values = {json.dumps(r.summary.get(key)) for r in comparison.records if r.summary}
        if len(values) > 1:
            yield f"The runs were made with different {what}: compare their speed with care."
    finished = [variant for variant in comparison.variants if comparison.result(variant).count]
    if not any(variant.name == PLAIN for variant in comparison.variants):
        yield "There is no plain run here: nothing to compare the others with."
    if finished and all(comparison.result(variant).count == 1 for variant in finished):
        yield (
            "Each variant was trained with one seed. Intervals say what the choice of evaluation "
            "images explains; how much another seed changes, only more seeds tell "
            "(composer-attn study --seeds 3)."
        )
    for variant in comparison.variants:
        attended = any(set(run.attention) - {COMPOSERS} for run in variant.runs)
        if attended and not any(run.excitations for run in variant.runs):
            yield (
                f"{variant.label}: no excitations were recorded. Runs with the callback "
                "excitation_monitor record them at every evaluation."
            )


def _of_run(record: Record) -> Iterator[str]:
    if not record.summary:
        if record.history:
            last = record.history[-1]
            yield (
                f"{record.name}: the run in {record.folder} has no summary. It was interrupted, or "
                f"is still training, after {last.epoch} epochs ({last.batch} batches); its curves "
                "are shown, final figures are not."
            )
        else:
            yield f"{record.name}: {record.folder} has neither a summary nor a training history."
    losses = record.moments("train", "loss")
    broken = [moment for moment, loss in losses if not isfinite(loss)]
    if broken:
        yield (
            f"{record.name}: the loss is NaN (not a number) from epoch {broken[0].epoch} on: "
            "training diverged, and its final figures are meaningless."
        )
    metrics = (record.summary or {}).get("metrics") or {}
    # Average precision by size is none where no object is of this size.
    empty = [n for n, value in metrics.items() if value is None and not n.endswith(_SIZES)]
    if empty:
        yield f"{record.name}: no value was computed for {', '.join(empty)}."
    if record.summary and not metrics:
        yield f"{record.name}: the run has no evaluation, and so no {record.task.headline.label}."
    if record.summary and not record.config:
        yield f"{record.name}: {record.folder} has no readable config, so its recipe is not known."


def _of_recipes(comparison: Comparison) -> Iterator[str]:
    known = [recipe_values(record.config) for record in comparison.records if record.config]
    keys = dict.fromkeys(key for values in known for key in values)
    differing = []
    for key in keys:
        found = dict.fromkeys(json.dumps(values.get(key), default=str) for values in known)
        if len(found) > 1:
            differing.append(f"{key} ({' / '.join(found)})")
    if differing:
        yield (
            "The runs are of different recipes; they differ, attention aside, in "
            f"{', '.join(differing)}. Each is compared with the plain run of its own recipe."
        )
