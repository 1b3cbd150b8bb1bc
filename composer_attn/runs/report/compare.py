"""Compare runs."""

import json
from collections.abc import Sequence

from composer_attn.runs.components.variants import PLAIN, attentions
from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.notices import notices_of
from composer_attn.runs.report.published import published_for
from composer_attn.runs.report.records import Record, recipe_of


def compare(records: Sequence[Record]) -> Comparison:
    """Group runs into variants, the plain ones first, and add notices for the reader."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        arguments = json.dumps(record.attention, sort_keys=True, default=str)
        groups.setdefault((recipe_of(record), record.variant, arguments), []).append(record)
    variants = tuple(
        VariantResults(
            label, name, recipe, tuple(sorted(runs, key=lambda r: r.config.get("seed", 0)))
        )
        for ((recipe, name, _), runs), label in zip(groups.items(), _labels(groups), strict=True)
    )
    order = [PLAIN, *attentions()]
    variants = tuple(
        sorted(variants, key=lambda v: order.index(v.name) if v.name in order else len(order))
    )
    metrics = [n for r in records for n in (r.summary or {}).get("metrics") or {}]
    metrics += [n for r in records for m in r.history if m.kind == "eval" for n in m.figures]
    metric = "accuracy" if "accuracy" in metrics or not metrics else metrics[0]
    published = published_for([record.config.get("model") or {} for record in records])
    comparison = Comparison(variants, metric, (), tuple(published))
    return Comparison(variants, metric, tuple(notices_of(comparison)), tuple(published))


def _labels(groups: dict[tuple[str, str, str], list[Record]]) -> list[str]:
    """Return unique labels: the variant's name, with arguments or run name if necessary."""
    names = [name for _, name, _ in groups]
    labels = []
    for (_, name, _), runs in groups.items():
        arguments = ", ".join(
            f"{key}={value}" for given in runs[0].attention.values() for key, value in given.items()
        )
        labels.append(f"{name} ({arguments})" if names.count(name) > 1 and arguments else name)
    runs_names = [str(runs[0].config.get("run_name", runs[0].folder)) for runs in groups.values()]
    return [
        f"{label} [{run_name}]" if labels.count(label) > 1 else label
        for label, run_name in zip(labels, runs_names, strict=True)
    ]
