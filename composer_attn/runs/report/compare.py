"""Compare runs."""

import json
from collections.abc import Sequence
from typing import Any

from composer_attn.runs.components.variants import PLAIN, attentions
from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.notices import notices_of
from composer_attn.runs.report.published import published_for
from composer_attn.runs.report.records import Record, recipe_of

# A recipe, an attention, its arguments, and the name that the user gave the variant.
_Key = tuple[str, str, str, str | None]
_LONGEST = 30  # characters of a label


def compare(records: Sequence[Record]) -> Comparison:
    """Group runs into variants, the plain ones first, and add notices for the reader."""
    groups: dict[_Key, list[Record]] = {}
    for record in records:
        arguments = json.dumps(record.attention, sort_keys=True, default=str)
        key = (recipe_of(record), record.variant, arguments, record.given_name)
        groups.setdefault(key, []).append(record)
    variants = tuple(
        VariantResults(
            label, name, recipe, tuple(sorted(runs, key=lambda r: r.config.get("seed", 0)))
        )
        for ((recipe, name, *_), runs), label in zip(groups.items(), _labels(groups), strict=True)
    )
    order = [PLAIN, *attentions()]
    variants = tuple(
        sorted(variants, key=lambda v: order.index(v.name) if v.name in order else len(order))
    )
    metrics = [n for r in records for n in (r.summary or {}).get("metrics") or {}]
    metrics += [n for r in records for m in r.history if m.kind == "eval" for n in m.figures]
    wanted = records[0].task.headline.name
    metric = wanted if wanted in metrics or not metrics else metrics[0]
    published = published_for([record.config.get("model") or {} for record in records])
    comparison = Comparison(variants, metric, (), tuple(published))
    return Comparison(variants, metric, tuple(notices_of(comparison)), tuple(published))


def _labels(groups: dict[_Key, list[Record]]) -> list[str]:
    """Return unique short labels: the given name, or the attention's, if necessary with arguments.

    Arguments that all variants of an attention share are left out, and long ones are numbered: the
    page lists the arguments of every variant once.
    """
    labels = []
    for (_, name, _, given), runs in groups.items():
        alike = [g for (_, n, _, _), g in groups.items() if n == name]
        arguments = ", ".join(
            f"{key}={value}"
            for key, value in _arguments(runs).items()
            if any(_arguments(other).get(key, value) != value for other in alike)
            or any(key not in _arguments(other) for other in alike)
        )
        label = f"{name} ({arguments})" if arguments else name
        if len(label) > _LONGEST:
            label = f"{name} {1 + [id(g) for g in alike].index(id(runs))}"
        labels.append(given or label)
    runs_names = [str(runs[0].config.get("run_name", runs[0].folder)) for runs in groups.values()]
    return [
        f"{label} [{run_name}]" if labels.count(label) > 1 else label
        for label, run_name in zip(labels, runs_names, strict=True)
    ]


def _arguments(runs: Sequence[Record]) -> dict[str, Any]:
    return {key: value for given in runs[0].attention.values() for key, value in given.items()}
