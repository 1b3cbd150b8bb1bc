"""Drawn shapes: where they and their points are, that none overlap, that they stay the same."""

import math
import subprocess
import sys

import pytest
import torch

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection.shapes import shapes_keypoints
from composer_attn.runs.data.seeded import seeded
from composer_attn.runs.data.shapes import CLASSES, draw_shapes


@pytest.mark.parametrize("index", range(20))
def test_boxes_and_masks_are_of_the_shapes_drawn(index):
    drawing = draw_shapes(64, 0, index)
    count = len(drawing.labels)
    assert 1 <= count <= 4
    assert drawing.image.shape == (3, 64, 64)
    assert drawing.image.dtype == torch.uint8
    assert drawing.masks.shape == (count, 64, 64)
    assert drawing.boxes.shape == (count, 4)
    assert int(drawing.masks.sum(0).max()) == 1  # no pixel is of two shapes
    for mask, box, label in zip(drawing.masks, drawing.boxes, drawing.labels, strict=True):
        left, top, right, bottom = (int(side) for side in box)
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert all(mask[top:bottom, left:right].any(1 - axis).all() for axis in (0, 1))
        side = right - left
        share = float(mask.sum() / (side * (bottom - top)))
        # A circle of this diameter is drawn, and half a pixel of its square beyond it.
        circle = math.pi * ((side - 1) / 2) ** 2 / side**2
        expected = {"circle": circle, "square": 1.0, "triangle": 0.5}[CLASSES[label]]
        assert share == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("index", range(10))
def test_points_are_the_outermost_pixels_of_the_shape_drawn(index):
    drawing = draw_shapes(64, 0, index)
    assert drawing.keypoints.shape == (len(drawing.labels), 4, 3)
    for mask, points, label in zip(drawing.masks, drawing.keypoints, drawing.labels, strict=True):
        assert points[:, 2].tolist() == [2, 2, 2, 2]
        x, y = points[:, 0].floor().long(), points[:, 1].floor().long()
        assert mask[y, x].all()
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert [y[0], x[1], x[2], y[3]] == [rows[0], columns[0], columns[-1], rows[-1]]
        assert x[0] == x[3] == (x[1] + x[2]) // 2
        assert y[1] == y[2] == (y[3] if CLASSES[label] == "triangle" else (y[0] + y[3]) // 2)
        assert (points[:, :2] % 1 == 0.5).all()  # the middle of a pixel


def test_the_detectors_data_end_and_are_mirrored_with_their_points():
    source = shapes_keypoints("train", 6, 48, augmentation="hflip")
    assert source.keypoints == 4
    plain = list(shapes_keypoints("train", 6, 48).dataset)  # an iteration ends
    assert len(plain) == 6
    for index, (image, target) in enumerate(plain):
        with seeded(0, index):
            mirrored, points = source.dataset[index]
        if torch.equal(mirrored, image):
            assert torch.equal(points["keypoints"], target["keypoints"])
            continue
        assert torch.equal(mirrored, image.flip(-1))
        expected = target["keypoints"][:, [0, 2, 1, 3]].clone()
        expected[..., 0] = 48 - expected[..., 0]
        assert torch.equal(points["keypoints"], expected)
    with pytest.raises(ArgumentError, match="augmentation of keypoints must be one of hflip, none"):
        shapes_keypoints("train", augmentation="ssd")


def test_a_shape_differs_in_colour_from_the_background():
    drawing = draw_shapes(96, 1, 2)
    around = drawing.image[:, ~drawing.masks.any(0)].float().mean(1)
    for mask in drawing.masks:
        assert (drawing.image[:, mask].float().mean(1) - around).abs().max() > 25


def test_the_same_numbers_give_the_same_image_in_another_process():
    code = (
        "from composer_attn.runs.data.shapes import draw_shapes; d = draw_shapes(48, 3, 5);"
        "print(int(d.image.long().sum()), d.boxes.tolist(), d.labels.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    drawing = draw_shapes(48, 3, 5)
    told = (int(drawing.image.long().sum()), drawing.boxes.tolist(), drawing.labels.tolist())
    assert done.stdout.split("\n")[0] == " ".join(map(str, told))


def test_images_seeds_and_sizes_differ():
    images = [draw_shapes(32, seed, index).image for seed in (0, 1) for index in (0, 1)]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_all_classes_are_about_as_frequent():
    labels = torch.cat([draw_shapes(64, 0, index).labels for index in range(100)])
    shares = labels.bincount(minlength=3) / len(labels)
    assert shares.min() > 0.25
