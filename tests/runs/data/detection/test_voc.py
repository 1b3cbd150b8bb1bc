"""Pascal VOC: boxes from XML, what is refused, what is skipped and counted."""

import pytest

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection.voc import CLASSES, voc
from tests.detection_data import write_voc


@pytest.fixture
def root(tmp_path):
    write_voc(tmp_path, {"a": [("cat", (1, 1, 60, 40), 0), ("dog", (11, 6, 20, 30), 1)], "b": []})
    return tmp_path


def test_boxes_are_counted_from_zero(root):
    source = voc(str(root), "train")
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
    source = voc(str(root), "train", classes=["dog", "cat"], keep_empty=False)
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
        voc(str(root), "train")
    with pytest.warns(UserWarning, match=f"1 {reason}"):
        source = voc(str(root), "train", on_bad_image="skip")
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
        voc(str(root), "train")


def test_arguments_that_are_not_valid(root):
    with pytest.raises(FileNotFoundError, match=r"val\.txt' of a split; there are train"):
        voc(str(root), "val")
    with pytest.raises(ArgumentError, match="classes must be a list of different names"):
        voc(str(root), "train", classes=["cat", "cat"])
