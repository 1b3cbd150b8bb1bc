"""Evaluation images with the truth and what each variant predicts for them, side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_attn.runs.report.boxes import draw_boxes, objects_found
from composer_attn.runs.report.comparison import Comparison
from composer_attn.runs.report.confusion_plots import class_names, shortened
from composer_attn.runs.report.masks import draw_masks, pixels_right
from composer_attn.runs.report.style import add_legend
from composer_attn.runs.tasks.task import Example
from composer_attn.runs.training.examples import read_examples

_COLUMNS = 3
_Drawn = tuple[str, str, str, str, Figure]


@dataclass(frozen=True)
class Look:
    """How the examples of a task are drawn and told.

    Attributes:
        draw: draws an example on axes, its ``truth`` or what was ``predicted``; the last argument
            are the names of the classes.
        told: says in words how good the prediction is.
    """

    draw: Callable[[Axes, Example, str, Sequence[str]], None]
    told: Callable[[Example], str]


_OBJECTS = Look(draw_boxes, objects_found)
LOOKS = {
    "detection": _OBJECTS,
    "instance_segmentation": _OBJECTS,
    "keypoints": _OBJECTS,
    "semantic_segmentation": Look(draw_masks, pixels_right),
}


def example_plots(comparison: Comparison) -> Iterator[_Drawn]:
    """Yield a picture for each example that the first run of every variant has."""
    task = comparison.records[0].task.name
    if task not in LOOKS:
        return
    by_variant = {}
    for variant in comparison.variants:
        found = (read_examples(run.folder) for run in variant.runs if run.task.name == task)
        by_variant[variant.label] = next(filter(None, found), [])
    examples = {label: found for label, found in by_variant.items() if found}
    names = next(filter(None, map(class_names, comparison.variants)), ())
    for index in range(max(map(len, examples.values()), default=0)):
        shown = {label: found[index] for label, found in examples.items() if index < len(found)}
        yield _plot(index + 1, _same_images(shown), LOOKS[task], names)


def _same_images(shown: dict[str, Example]) -> dict[str, Example]:
    """Return the examples that are of the same image as the first."""
    image = next(iter(shown.values()))["image"]
    return {k: each for k, each in shown.items() if np.array_equal(each["image"], image)}


def _plot(number: int, shown: dict[str, Example], look: Look, names: Sequence[str]) -> _Drawn:
    first = next(iter(shown.values()))
    cells: list[tuple[str, Example, str]] = [("image", first, ""), ("truth", first, "truth")]
    cells += [(label, example, "predicted") for label, example in shown.items()]
    rows = -(-len(cells) // _COLUMNS)
    figure = Figure(figsize=(5.2, 1.95 * rows), layout="constrained")
    every = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axes in every:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
    told = []
    for axes, (label, example, what) in zip(every, cells, strict=False):
        axes.imshow(np.moveaxis(example["image"], 0, -1), interpolation="nearest")
        if what:
            look.draw(axes, example, what, names)
        axes.set_title(shortened(label), fontsize=9)
        if what == "predicted":
            axes.set_xlabel(look.told(example), fontsize=8)
            told.append(f"{label}: {look.told(example)}")
    add_legend(figure)
    title = f"Evaluation image {number}: the truth, and what is predicted"
    return f"example_{number}", "examples", title, f"{title}. {'; '.join(told)}.", figure
