"""Objects in images: drawn as they are and as detected, and how many are found."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from composer_attn.runs.report.boxes import draw_boxes, objects_found
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.examples import example_plots
from composer_attn.runs.report.records import find_records
from composer_attn.runs.tasks.detection import examples_of
from composer_attn.runs.training.examples import FILE, read_examples
from tests.runs.runs_on_disk import write_run

NAMES = ["cat", "dog"]
BOXES = [[2, 3, 12, 13], [20, 5, 34, 25]]


def example(boxes=BOXES, labels=(1, 2), scores=(0.9, 0.8)):
    batch = (
        [torch.rand(3, 30, 40)],
        [{"boxes": torch.tensor(BOXES).float(), "labels": torch.tensor([1, 2])}],
    )
    detected = {
        "boxes": torch.tensor(boxes).float().reshape(-1, 4),
        "labels": torch.tensor(labels),
        "scores": torch.tensor(scores),
    }
    (found,) = examples_of(batch, [detected])
    return found


@pytest.mark.parametrize(
    ("detected", "says"),
    [
        ({}, "2 of 2 found"),
        ({"labels": (1, 1)}, "1 of 2 found, 1 other box"),
        ({"scores": (0.9, 0.4)}, "1 of 2 found"),  # not sure enough to be drawn
        (
            {"boxes": [[2, 3, 12, 13], [2, 3, 12, 12]], "labels": (1, 1)},
            "1 of 2 found, 1 other box",
        ),
        ({"boxes": [[2, 3, 7, 13], [20, 5, 34, 14]]}, "1 of 2 found, 1 other box"),
        ({"boxes": [], "labels": (), "scores": ()}, "0 of 2 found"),
    ],
)
def test_an_object_is_found_once_by_a_box_of_its_class_that_overlaps_by_half(detected, says):
    assert objects_found(example(**detected)) == says


def test_images_without_objects():
    found = example()
    found["truth_boxes"], found["truth_labels"] = np.zeros((0, 4)), np.zeros(0)
    assert objects_found(found) == "0 of 0 found, 2 other boxes"


def test_boxes_and_names_are_drawn_where_they_are():
    axes = Figure().subplots()
    draw_boxes(axes, example(), "truth", NAMES)
    drawn = [[*patch.get_xy(), patch.get_width(), patch.get_height()] for patch in axes.patches]
    assert drawn == [[1.5, 2.5, 10, 10], [19.5, 4.5, 14, 20]]
    assert [text.get_text() for text in axes.texts] == NAMES


def test_masks_and_keypoints_are_drawn():
    found = example()
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 3:13, 2:12] = True
    points = np.array([[[5.0, 6.0, 2.0], [0.0, 0.0, 0.0]]] * 2)  # the second is not annotated
    found |= {"truth_masks": masks, "truth_keypoints": points}
    axes = Figure().subplots()
    draw_boxes(axes, found, "truth", NAMES)
    assert (axes.images[0].get_array()[..., 3] > 0).sum() == 100
    line, _ = axes.lines
    assert line.get_xydata().tolist() == [[4.5, 5.5]]


def test_large_images_are_thinned_with_their_objects():
    batch = (
        [torch.rand(3, 600, 400)],
        [{"boxes": torch.tensor([[30.0, 60.0, 90.0, 120.0]]), "labels": torch.tensor([1]),
          "masks": torch.ones(1, 600, 400, dtype=torch.uint8),
          "keypoints": torch.tensor([[[30.0, 60.0, 2.0]]])}],
    )  # fmt: skip
    detected = {**batch[1][0], "scores": torch.tensor([0.9]), "masks": torch.ones(1, 1, 600, 400)}
    (found,) = examples_of(batch, [detected])
    assert found["image"].shape == (3, 200, 134)
    for what in ("truth", "predicted"):
        assert found[f"{what}_boxes"].tolist() == [[10, 20, 30, 40]]
        assert found[f"{what}_masks"].shape == (1, 200, 134)
        assert found[f"{what}_keypoints"].tolist() == [[[10, 20, 2]]]


def test_runs_of_detection_are_compared_by_average_precision(tmp_path):
    for attention, precision in ((None, 0.3), ("eca", 0.4)):
        folder = write_run(
            tmp_path / str(attention), attention, 17, precision, metric="map", task="detection"
        )
        arrays = {f"0/{name}": array for name, array in example().items()}
        np.savez(folder / FILE, **arrays)
        assert set(read_examples(folder)[0]) == set(example())
    comparison = compare(find_records([tmp_path]))
    assert comparison.metric == "map"
    assert comparison.headline.label == "AP"
    (name, section, title, alt, _), *_ = example_plots(comparison)
    assert (name, section) == ("example_1", "examples")
    assert "plain: 2 of 2 found" in alt
    assert title.startswith("Evaluation image 1")
