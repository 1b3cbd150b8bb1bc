"""Heat maps of the same evaluation images under all variants, for the page."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from matplotlib import rc_context
from torch import Tensor

from composer_attn.errors import first_line
from composer_attn.runs.heatmaps.drawing import draw
from composer_attn.runs.heatmaps.of_evaluation import Looked, evaluation_images
from composer_attn.runs.heatmaps.views import View, views_of
from composer_attn.runs.inference import load_run
from composer_attn.runs.report.comparison import Comparison, VariantResults
from composer_attn.runs.report.plots import Plot
from composer_attn.runs.report.records import Record
from composer_attn.runs.report.style import RC, inline_svg, style_of
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.training.checkpoint_saver import checkpoints_in

IMAGES = 6


def draw_heat_maps(comparison: Comparison, folder: Path) -> tuple[list[Plot], list[str]]:
    """Draw what the networks of all variants look at in a few evaluation images.

    Of each variant, the first run with a checkpoint is shown.

    Args:
        comparison: the runs.
        folder: where to write the plots, as SVG and PNG.

    Returns:
        A plot for each image, none if no run has a checkpoint; and notices for the reader.
    """
    shown = [(v, run) for v in comparison.variants if (run := _with_checkpoint(v)) is not None]
    if not shown:
        return [], []
    if find_spec("captum") is None:
        message = "heat maps need captum: pip install 'composer-attn[heatmaps]'"
        return [], [f"What the networks look at is not shown: {message}"]
    looked, told = _look(shown)
    with rc_context(RC):
        plots = [_draw(comparison, index, each, folder) for index, each in enumerate(looked, 1)]
    return plots, told


def _with_checkpoint(variant: VariantResults) -> Record | None:
    classifiers = (run for run in variant.runs if run.task is CLASSIFICATION)
    evaluated = (run for run in classifiers if run.config.get("eval_dataset"))
    return next((run for run in evaluated if checkpoints_in(run.folder)), None)


def _look(shown: Sequence[tuple[VariantResults, Record]]) -> tuple[list[Looked], list[str]]:
    """Return the views of the first run's evaluation images, and why variants are left out."""
    taken: tuple[Tensor, list[str]] | None = None
    data, by_variant, told = None, [], []
    for variant, record in shown:
        try:
            if taken is not None and record.config["eval_dataset"] != data:
                raise ValueError("it was evaluated on other data")
            run = load_run(record.folder)
            if run.preprocessing.refusal:  # nothing to look at, such as random numbers
                continue
            if taken is None:
                taken, data = evaluation_images(run, IMAGES), record.config["eval_dataset"]
            by_variant.append(views_of(run, variant.label, taken[0]))
        except Exception as error:  # of any type: whatever a run's folder holds, the page is made
            told.append(f"{variant.label}: its heat maps are not shown: {first_line(error)}")
    labels = taken[1] if taken is not None else []
    rows: list[tuple[View, ...]] = list(zip(*by_variant, strict=True))
    return [Looked(label, row) for label, row in zip(labels, rows, strict=False)], told


def _draw(comparison: Comparison, number: int, looked: Looked, folder: Path) -> Plot:
    by_label = {variant.label: variant for variant in comparison.variants}
    colours = [style_of(comparison, by_label[view.run])["color"] for view in looked.views]
    figure, name = draw(looked.views, looked.label, colours), f"heat_map_{number}"
    layers = ", ".join(dict.fromkeys(view.layer for view in looked.views))
    said = (f"{v.run} predicts {v.prediction} ({v.probability:.1%})" for v in looked.views)
    title = f"Evaluation image {number}, of class {looked.label}; feature map of {layers}"
    alt = f"{title}. {'; '.join(said)}."
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", facecolor="white", dpi=160)
    return Plot(name, "heat_maps", title, alt, inline_svg(figure, name, alt))
