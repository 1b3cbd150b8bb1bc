"""Draw docs/heat_maps.png, the heat maps in the README, from a study of handwritten digits.

composer-attn study yamls/digits_plain.yaml train_dataset.size=64 eval_dataset.size=64 \
    max_duration=4ep --out runs/digits_64
python -m benchmarks.heat_maps runs/digits_64
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.picture import ROOT
from composer_attn.runs.heatmaps.drawing import overlay
from composer_attn.runs.heatmaps.of_evaluation import evaluation_images
from composer_attn.runs.heatmaps.views import View, views_of
from composer_attn.runs.inference import load_run

PICTURE = ROOT / "docs" / "heat_maps.png"
NAMES = {"plain": "plain", "squeeze_excite": "SE", "eca": "ECA"}
IMAGES = 8
SEED = 17


def rows(study: Path) -> tuple[list[str], dict[str, list[View]]]:
    """Return the labels of evaluation images, and the views of them by each variant."""
    runs = {NAMES[name]: load_run(study / f"{name}-seed{SEED}") for name in NAMES}
    images, labels = evaluation_images(runs["plain"], IMAGES)
    order = sorted(range(len(labels)), key=lambda index: labels[index])
    views = {name: views_of(run, name, images[order]) for name, run in runs.items()}
    return [labels[index] for index in order], views


def draw(labels: Sequence[str], views: dict[str, list[View]], path: Path = PICTURE) -> None:
    """Draw the images in the first row, and below it a row of heat maps for each variant."""
    figure = Figure(figsize=(len(labels) * 1.15 + 0.4, 1.2 + 1.45 * len(views)))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(1 + len(views), len(labels), squeeze=False)
    for column, label in enumerate(labels):
        _show(axes[0][column], next(iter(views.values()))[column].pixels, "")
        for row, seen in enumerate(views.values(), 1):
            view = seen[column]
            wrong = "" if view.prediction == label else " \N{BALLOT X}"
            said = f"{view.prediction}{wrong}  {view.probability:.0%}"
            _show(axes[row][column], overlay(view.pixels, view.heat), said)
    for row, name in enumerate(["image", *views]):
        axes[row][0].set_ylabel(name, fontsize=11, fontweight="bold")
    figure.savefig(path, dpi=85, facecolor="white")


def _show(axes: Axes, pixels, below: str) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(below, fontsize=9)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    draw(*rows(Path(sys.argv[1])))
