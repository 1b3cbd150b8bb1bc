"""Reports of semantic segmentation: mean IoU in place of accuracy, predictions beside the truth."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from composer_attn.runs.report import write_report
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.examples import example_plots
from composer_attn.runs.report.headline import headline
from composer_attn.runs.report.masks import draw_masks, pixels_right
from composer_attn.runs.report.records import find_records
from composer_attn.runs.training.class_names import FILE as CLASSES
from composer_attn.runs.training.examples import FILE, read_examples
from tests.runs.runs_on_disk import write_run

NAMES = ["background", "cat", "dog"]


def example(seed: int = 0, wrong: int = 0) -> dict[str, np.ndarray]:
    """Return an image with a mask, and a prediction with some pixels wrong."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, (10, 12)).astype(np.uint8)
    predicted = truth.copy()
    predicted.flat[:wrong] = (predicted.flat[:wrong] + 1) % 3
    image = random.integers(0, 256, (3, 10, 12)).astype(np.uint8)
    return {"image": image, "truth": truth, "predicted": predicted}


def write_examples(folder, *examples) -> None:
    arrays = {f"{i}/{n}": array for i, each in enumerate(examples) for n, array in each.items()}
    np.savez(folder / FILE, **arrays)
    (folder / CLASSES).write_text(json.dumps({"num_classes": 3, "classes": NAMES}))


def write_segmentation(folder, attention=None, seed=17, iou=0.6, **options):
    return write_run(
        folder, attention, seed, iou, metric="mean_iou", task="semantic_segmentation", **options
    )


@pytest.fixture
def study(tmp_path):
    for name, wrong in (("plain", 30), ("eca", 12)):
        attention = None if name == "plain" else name
        for seed in range(3):
            iou = (0.6 if name == "plain" else 0.7) + 0.01 * seed + 0.001 * wrong * (seed % 2)
            folder = write_segmentation(tmp_path / f"{name}-{seed}", attention, seed, iou)
            write_examples(folder, example(0, wrong), example(1, wrong))
    return tmp_path


def test_variants_are_compared_by_mean_iou(study, tmp_path):
    comparison = compare(find_records([study]))
    assert comparison.metric == "mean_iou"
    plain, eca = comparison.variants
    assert comparison.result(plain).mean == pytest.approx(0.62)
    assert comparison.difference(eca) == pytest.approx(0.094)
    assert comparison.interval(eca).low < comparison.result(eca).mean
    assert "mean IoU" in headline(comparison)
    page = write_report([study], tmp_path / "out").read_text()
    assert "Mean IoU per evaluation" in page
    assert "mean IoU (%)" in page
    assert "Wilson" not in page
    assert "accuracy" not in page.lower().replace("pixel accuracy", "")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metric"] == "mean_iou"
    assert results["variants"][0]["mean_iou"] == pytest.approx(0.62)
    assert results["runs"][0]["right_images"] is None


def test_one_seed_has_no_interval_and_no_best(tmp_path):
    for name, iou in (("plain", 0.5), ("eca", 0.9)):
        write_segmentation(tmp_path / name, None if name == "plain" else name, iou=iou)
    comparison = compare(find_records([tmp_path]))
    _, eca = comparison.variants
    assert comparison.interval(eca) is None
    assert comparison.contrast(eca).interval is None
    assert comparison.verdict(eca) == "not distinguishable: one seed"
    assert headline(comparison) == (
        "No variant can be called best: the highest mean IoU, 90.00% with eca, is not "
        "distinguishable from that of plain (one seed each)."
    )


def test_predictions_are_drawn_beside_the_truth(study, tmp_path):
    plots = list(example_plots(compare(find_records([study]))))
    assert [plot[0] for plot in plots] == ["example_1", "example_2"]
    _, section, title, alt, figure = plots[0]
    assert section == "examples"
    assert title == "Evaluation image 1: the truth, and what is predicted"
    assert "plain: 75.0% of pixels right; eca: 90.0% of pixels right." in alt
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "truth", "plain", "eca", "", ""]  # two rows of three
    page = write_report([study], tmp_path / "out").read_text()
    assert "What they predict" in page
    assert (tmp_path / "out/plots/example_2.svg").exists()


def test_masks_are_in_the_colours_of_their_classes():
    axes = Figure().add_subplot()
    truth = np.array([[0, 1], [2, 255]], np.uint8)
    draw_masks(axes, {"truth": truth}, "truth", NAMES)
    drawn = axes.images[0].get_array()
    assert drawn[0, 0, 3] == 0  # the background
    assert drawn[1, 1].tolist() == [1, 1, 1, 0.7]
    assert not np.array_equal(drawn[0, 1], drawn[1, 0])
    assert axes.get_legend_handles_labels()[1] == ["cat", "dog"]
    draw_masks(axes, {"truth": truth}, "truth", [])
    assert axes.images[1].get_array()[0, 0, 3] == 0.7


def test_pixels_without_a_class_are_not_counted():
    truth = np.array([[0, 1, 255, 255]], np.uint8)
    predicted = np.array([[0, 0, 1, 1]], np.uint8)
    assert pixels_right({"truth": truth, "predicted": predicted}) == "50.0% of pixels right"
    nothing = {"truth": np.full((1, 4), 255, np.uint8), "predicted": predicted}
    assert pixels_right(nothing) == "no pixel has a class"


def test_a_variant_with_other_images_is_left_out(study):
    write_examples(study / "eca-0", example(5))
    plots = list(example_plots(compare(find_records([study]))))
    assert [axes.get_title() for axes in plots[0][4].axes if axes.get_title()][1:] == [
        "truth",
        "plain",
    ]


def test_without_a_file_or_with_a_broken_one_there_are_none(study, tmp_path):
    for folder in study.glob("*-?"):
        (folder / FILE).write_bytes(b"broken")
    assert read_examples(study / "eca-0") == read_examples(tmp_path / "none") == []
    assert list(example_plots(compare(find_records([study])))) == []


def test_runs_of_earlier_versions_are_of_the_same_recipe(tmp_path):
    new = write_run(tmp_path / "new", "eca")
    old = write_run(tmp_path / "old", None)
    config = old / "config.yaml"
    config.write_text(config.read_text().replace("task: classification\n", ""))
    comparison = compare(find_records([new, old]))
    assert len({variant.recipe for variant in comparison.variants}) == 1
    assert comparison.difference(comparison.variants[1]) == 0
