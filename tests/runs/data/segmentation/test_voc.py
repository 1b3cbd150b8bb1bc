"""Pascal VOC's segmentation, from files laid out as its own are; drawn shapes with masks."""

import pytest
import torch

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.segmentation.shapes import shapes_segmentation
from composer_attn.runs.data.segmentation.voc import CLASSES, voc_segmentation
from composer_attn.runs.data.shapes import draw_shapes
from tests.runs.data.segmentation.masks import write_voc


def test_its_splits_are_read(tmp_path):
    write_voc(tmp_path)
    train = voc_segmentation(str(tmp_path), "train", size=32, resize=40)
    val = voc_segmentation(str(tmp_path), "val", resize=20)
    assert (len(train.dataset), len(val.dataset)) == (4, 2)
    assert train.random
    assert not val.random
    assert train.num_classes == len(CLASSES) == 21
    assert [image.shape[1] for image, _ in val.dataset] == [20, 20]


def test_missing_files_and_wrong_arguments_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not hold VOC 2012's train split"):
        voc_segmentation(str(tmp_path), "train")
    with pytest.raises(ArgumentError, match="split must be one of train, trainval, val"):
        voc_segmentation(str(tmp_path), "test")
    with pytest.raises(ArgumentError, match="year must be from 2007 to 2012"):
        voc_segmentation(str(tmp_path), "train", year=2013)


def test_masks_of_shapes_are_where_they_are_drawn():
    source = shapes_segmentation("train", 8, 48, seed=3)
    assert source.classes == ("background", "circle", "square", "triangle")
    for index in range(8):
        image, mask = source.dataset[index]
        drawing = draw_shapes(48, 6, index)
        assert torch.equal(image, drawing.image)
        assert torch.equal(mask > 0, drawing.masks.any(0))
        for shape, label in zip(drawing.masks, drawing.labels, strict=True):
            assert (mask[shape] == label + 1).all()


def test_splits_of_shapes_have_no_image_in_common():
    train, test = (shapes_segmentation(split, 8, 32).dataset for split in ("train", "test"))
    assert not any(torch.equal(a[0], b[0]) for a in train for b in test)
    assert len(train) == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "val"}, "split must be train or test"),
        ({"size": 16}, "size must be a whole number >= 32"),
        ({"num_samples": 0}, "num_samples must be a whole number >= 1"),
    ],
)
def test_wrong_arguments_of_shapes_are_refused(arguments, says):
    with pytest.raises(ArgumentError, match=says):
        shapes_segmentation(**{"split": "train"} | arguments)
