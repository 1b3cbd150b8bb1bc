"""Pascal VOC: boxes from XML, masks from images of numbers, what is refused, skipped, counted."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection.voc import CLASSES, voc_boxes, voc_masks
from tests.detection_data import write_numbers, write_voc, write_voc_masks


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path, {"a": [("cat", (1, 1, 60, 40), 0), ("dog", (11, 6, 20, 30), 1)], "b": []})
    return tmp_path


def test_boxes_are_counted_from_zero(root):
    source = voc_boxes(str(root), "train")
    assert source.classes == CLASSES
    assert source.num_classes == 20
    assert source.image_shape == (3, 40, 60)
    image, target = source.dataset[0]
    assert image.shape == (3, 40, 60)
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10, 5, 20, 30]]
    assert target["labels"].tolist() == [CLASSES.index("cat") + 1, CLASSES.index("dog") + 1]
    assert target["iscrowd"].tolist() == [0, 1]  # difficult ones are passed over
    assert target["area"].tolist() == [2400, 250]
    assert source.dataset[1][1]["boxes"].shape == (0, 4)


def test_classes_of_ones_own(root):
    source = voc_boxes(str(root), "train", classes=["dog", "cat"], keep_empty=False)
    assert source.dataset[0][1]["labels"].tolist() == [2, 1]
    assert source.passed_over == {"images without objects": 1}


@pytest.mark.parametrize(
    ("objects", "reason", "says"),
    [
        (
            [("cats", (1, 1, 9, 9), 0)],
            "unknown classes",
            "unknown class 'cats'; did you mean 'cat'",
        ),
        ([("cat", (50, 1, 70, 9), 0)], "boxes outside the image", "in an image of width 60"),
        ([("cat", (9, 9, 5, 5), 0)], "boxes of no area", r"\[8, 8, 5, 5\]"),
        ([("cat", ("", 1, 9, 9), 0)], "annotations without a box", "the box of cat is"),
    ],
)
def test_bad_annotations_are_one_error_or_counted(objects, reason, says, root):
    write_voc(root, {"a": [("cat", (1, 1, 9, 9), 0)], "c": objects})
    with pytest.raises(ArgumentError, match=rf"has 1 bad images: c: .*{says}.*\({reason}\)"):
        voc_boxes(str(root), "train")
    with pytest.warns(UserWarning, match=f"1 {reason}"):
        source = voc_boxes(str(root), "train", on_bad_image="skip")
    assert len(source.dataset) == 1
    assert source.passed_over == {reason: 1}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "JPEGImages/a.jpg").unlink(), r"there is no a\.jpg in"),
        (lambda root: (root / "Annotations/a.xml").unlink(), r"no a\.xml \(images without annot"),
        (lambda root: (root / "Annotations/a.xml").write_text("<a>"), r"a\.xml is not XML"),
        (lambda root: (root / "Annotations/a.xml").write_text("<a></a>"), "its size/height is ''"),
    ],
)
def test_missing_and_damaged_files(damage, says, root):
    damage(root)
    with pytest.raises(ArgumentError, match=says):
        voc_boxes(str(root), "train")


def test_arguments_that_are_not_valid(root):
    with pytest.raises(FileNotFoundError, match=r"val\.txt' of a split; there are train"):
        voc_boxes(str(root), "val")
    with pytest.raises(ArgumentError, match="classes must be a list of different names"):
        voc_boxes(str(root), "train", classes=["cat", "cat"])


MASKED = {
    "a": [("cat", (1, 1, 60, 40), 0), ("dog", (11, 6, 20, 30), 0)],
    "b": [("cat", (5, 5, 9, 9), 0)],
}


def test_masks_are_the_pixels_of_an_objects_number(tmp_path):
    write_voc_masks(tmp_path, MASKED)
    source = voc_masks(str(tmp_path), "train", augmentation="hflip")
    assert source.num_classes == 20
    plain = voc_masks(str(tmp_path), "train").dataset
    _, target = plain[0]
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    # The dog, of 10 by 25 pixels, is in front of the cat.
    assert target["masks"].sum((1, 2)).tolist() == [60 * 40 - 250, 250]
    assert target["masks"][1, 5:30, 10:20].all()
    assert target["boxes"].tolist() == [[0, 0, 60, 40], [10, 5, 20, 30]]


def test_masks_of_instances_have_lists_of_their_own(tmp_path):
    write_voc_masks(tmp_path, MASKED)
    write_voc(tmp_path, {"c": []}, split="val")
    with pytest.raises(FileNotFoundError, match=r"Segmentation/val\.txt' of a split; there are"):
        voc_masks(str(tmp_path), "val")


SHAPE = (40, 60)
BAD_MASKS = {
    "another size": (np.zeros((40, 61), np.uint8), "masks of another size", "61 x 40 pixels, and"),
    "absent": (np.ones(SHAPE, np.uint8), "objects without a mask", r"a\.png has no pixel of 2"),
    "more": (
        np.resize(np.array([1, 2, 3, 255], np.uint8), SHAPE), "masks of no object", "has 3, of 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("numbers", "reason", "says"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_bad_masks_are_one_error_or_counted(numbers, reason, says, tmp_path):
    write_voc_masks(tmp_path, MASKED)
    write_numbers(tmp_path, "a", numbers)
    with pytest.raises(ArgumentError, match=rf"has 1 bad images: a: .*{says}.*\({reason}\)"):
        voc_masks(str(tmp_path), "train")
    with pytest.warns(UserWarning, match=f"1 {reason}"):
        source = voc_masks(str(tmp_path), "train", on_bad_image="skip")
    assert len(source.dataset) == 1
    assert source.passed_over == {reason: 1}


def test_missing_and_damaged_masks(tmp_path):
    write_voc_masks(tmp_path, MASKED)
    (tmp_path / "SegmentationObject/a.png").unlink()
    (tmp_path / "SegmentationObject/b.png").write_bytes(b"no image")
    says = r"2 bad images: a: there is no .*a\.png \(images without a mask\); b: b\.png cannot be"
    with pytest.raises(ArgumentError, match=says):
        voc_masks(str(tmp_path), "train")


def test_what_is_passed_over_may_lack_a_mask(tmp_path):
    write_voc_masks(tmp_path, {"a": [("cat", (1, 1, 9, 9), 0), ("dog", (20, 20, 30, 30), 1)]})
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[:9, :9] = 1
    write_numbers(tmp_path, "a", numbers)
    _, target = voc_masks(str(tmp_path), "train").dataset[0]
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["masks"].sum((1, 2)).tolist() == [81, 0]
