"""The evaluation images that a variant classifies correctly and plain does not, and vice versa."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from composer_attn.runs.data import LOADER_ARGUMENTS
from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.confusion_plots import class_names
from composer_attn.runs.report.records import Record
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.training.predictions import Predictions

_COLUMNS, _ROWS = 4, 3
_Drawn = tuple[str, str, str, str, Figure]


def changed_images(comparison: Comparison) -> Iterator[_Drawn]:
    """Yield pictures of the images that changed, for the first seed of each variant and of plain.

    Without the evaluation data there are none.
    """
    datasets: dict[str, Any] = {}
    for variant in comparison.variants:
        plain = comparison.baseline(variant)
        pair = _pair(variant, plain) if plain and plain is not variant else None
        if plain is None or pair is None:
            continue
        here, there = (run.predictions for run in pair)
        if here is None or there is None:
            continue
        dataset = _dataset(pair[0], here, datasets)
        if dataset is None:
            continue
        for gained in (True, False):
            drawn = _plot(variant, plain, pair[0], here, there, dataset, gained)
            if drawn is not None:
                yield drawn


def _pair(variant: VariantResults, plain: VariantResults) -> tuple[Record, Record] | None:
    """Return the first runs with the same seed whose predictions are of the same images."""
    for here in variant.runs:
        for there in plain.runs:
            same = here.config.get("seed") == there.config.get("seed")
            ours, theirs = here.predictions, there.predictions
            if not same or not here.counts or not there.counts or not ours or not theirs:
                continue
            if ours.comparable(theirs):
                return here, there
    return None


def _dataset(run: Record, predictions: Predictions, known: dict[str, Any]) -> Any:
    """Return the evaluation images of a run; ``None`` if they are not there, or are others."""
    section = run.config.get("eval_dataset") or {}
    key = repr(section)
    if key not in known:
        try:
            known[key] = _load(section, predictions)
        except Exception:  # the data may be on another machine, and libraries raise anything
            known[key] = None
    return known[key]


def _load(section: dict[str, Any], predictions: Predictions) -> Any:
    arguments = {k: v for k, v in section.items() if k not in ("name", *LOADER_ARGUMENTS)}
    if arguments.get("download"):
        arguments["download"] = False
    source = CLASSIFICATION.datasets[section["name"]](**arguments)
    dataset: Any = source.dataset
    if source.streams or source.random or len(dataset) != len(predictions.labels):
        return None
    return dataset


def _plot(
    variant: VariantResults,
    plain: VariantResults,
    run: Record,
    here: Predictions,
    there: Predictions,
    dataset: Any,
    gained: bool,
) -> _Drawn | None:
    changed = here.right & ~there.right if gained else there.right & ~here.right
    indices = np.flatnonzero(changed)
    if not len(indices):
        return None
    # First those of which the network is the most certain.
    order = np.argsort(-here.probability[indices].astype(float), kind="stable")
    shown = indices[order][: _COLUMNS * _ROWS]
    names = class_names(variant)
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(5.2, 1.65 * rows), layout="constrained")
    told = []
    for axes, index in zip(
        figure.subplots(rows, _COLUMNS, squeeze=False).flat, shown, strict=False
    ):
        image, label = dataset[int(index)]
        if int(label) != int(here.labels[index]):
            return None  # the data has changed
        axes.imshow(as_picture(image), cmap="gray", interpolation="nearest")
        words = [_name(names, int(p.predicted[index])) for p in (there, here)]
        axes.set_title(f"{words[0]} \N{RIGHTWARDS ARROW} {words[1]}", fontsize=9)
        axes.set_xlabel(f"{float(here.probability[index]):.0%}, no. {index}", fontsize=8)
        told.append(f"no. {index}, {words[0]} to {words[1]}")
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    what = "now right" if gained else "now wrong"
    part = f", {len(shown)} of them" if len(shown) < len(indices) else ""
    seed = run.config.get("seed")
    title = (
        f"{variant.label}, seed {seed}: {len(indices)} images {what} that {plain.label} had "
        f"{'wrong' if gained else 'right'}{part} (prediction before and after, its probability)"
    )
    slug = "".join(c if c.isalnum() else "_" for c in variant.label)
    name = f"changed_{slug}_{'right' if gained else 'wrong'}"
    return name, "confusion", title, f"{title}: {'; '.join(told)}.", figure


def _read(dataset: Any, index: int, label: int) -> torch.Tensor | None:
    """Return an image; ``None`` if it cannot be read, or if the data have changed."""
    try:
        image, found = dataset[index]
    except Exception:  # a file may be gone since, and libraries raise anything
        return None
    return image if int(found) == label else None


def as_picture(image: torch.Tensor) -> np.ndarray:
    """Convert an image ``(C, H, W)`` to ``(H, W, 3)`` from 0 to 1; floats from least to largest."""
    if image.dtype == torch.uint8:
        values = image.float() / 255
    else:
        values = image.float() - image.min()
        values = values / values.max().clamp(min=1e-6)
    return values.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _name(names: tuple[str, ...], label: int) -> str:
    name = names[label] if label < len(names) else str(label)
    return name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
