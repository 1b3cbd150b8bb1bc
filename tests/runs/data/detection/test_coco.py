"""Annotations in COCO's format: what is read, what is refused, what is skipped and counted."""

import json

import pytest
import torch
from torchvision import tv_tensors

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.detection.categories import Categories
from composer_attn.runs.data.detection.coco import coco_boxes, coco_keypoints, coco_masks
from tests.detection_data import content, write_coco


def test_labels_are_contiguous_in_the_order_of_the_ids(tmp_path):
    found = content()
    source = coco_boxes(**write_coco(tmp_path, found))
    assert source.classes == ("green", "red", "blue")
    assert source.num_classes == 3
    labels = {3: 1, 7: 2, 90: 3}
    for index, image in enumerate(found["images"]):
        _, target = source.dataset[index]
        objects = [o for o in found["annotations"] if o["image_id"] == image["id"]]
        assert target["labels"].tolist() == [labels[o["category_id"]] for o in objects]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (o["bbox"] for o in objects)]
        assert target["boxes"].tolist() == expected
        assert target["area"].tolist() == [o["area"] for o in objects]


def test_ids_can_be_the_labels_as_in_published_networks(tmp_path):
    source = coco_boxes(**write_coco(tmp_path), category_ids=True)
    assert source.num_classes == 90
    assert source.classes[2] == "green"
    assert source.classes.count("N/A") == 87
    labels = torch.cat([source.dataset[i][1]["labels"] for i in range(4)])
    assert set(labels.tolist()) <= {3, 7, 90}


def test_labels_lead_back_to_ids():
    categories = Categories.of([(7, "red"), (3, "green"), (90, "blue")])
    assert [categories.id_of(categories.label_of(i)) for i in (3, 7, 90)] == [3, 7, 90]
    assert categories.label_of(4) is None


def test_samples_are_tv_tensors_of_the_images_own_sizes(tmp_path):
    source = coco_masks(**write_coco(tmp_path))
    image, target = source.dataset[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.shape == (3, 56, 48)
    assert image.dtype == torch.uint8
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].canvas_size == (56, 48)
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert source.dataset[1][0].shape == (3, 48, 64)


def test_masks_fill_their_rectangles(tmp_path):
    _, target = coco_masks(**write_coco(tmp_path)).dataset[1]
    for (left, top, right, bottom), mask in zip(
        target["boxes"].int().tolist(), target["masks"], strict=True
    ):
        assert mask.sum() == (right - left) * (bottom - top) == mask[top:bottom, left:right].sum()


def test_run_lengths_are_masks_too(tmp_path):
    found = content(1)
    found["annotations"] = found["annotations"][:1]
    height, width = 56, 48
    found["annotations"][0] |= {
        "iscrowd": 1,
        "segmentation": {"size": [height, width], "counts": [0, height, height * (width - 1)]},
    }
    _, target = coco_masks(**write_coco(tmp_path, found)).dataset[0]
    assert target["iscrowd"].tolist() == [1]
    assert target["masks"][0, :, 0].all()
    assert target["masks"].sum() == height


def test_a_batch_is_two_lists_of_plain_tensors(tmp_path):
    data = build_loader(coco_boxes(**write_coco(tmp_path)), 2, train=False, seed=0)
    batch = next(iter(data.dataloader))
    images, targets = data.microbatch_transforms(batch)
    assert [type(image) for image in images] == [torch.Tensor] * 2
    assert [image.shape for image in images] == [(3, 56, 48), (3, 48, 64)]
    assert 0 <= images[0].min() < images[0].max() <= 1
    assert type(targets[0]["boxes"]) is torch.Tensor
    assert [t["image_id"].item() for t in targets] == [0, 1]


def broken(change):
    found = content()
    change(found)
    return found


def changed(**values):
    return lambda found: found["annotations"][0].update(values)


BAD = {
    "no box": (changed(bbox=None), "annotations without a box", r"its bbox is None"),
    "three numbers": (changed(bbox=[1, 2, 3]), "annotations without a box", r"\[1, 2, 3\]"),
    "text": (changed(bbox=[1, 2, "3", 4]), "annotations without a box", "its bbox is"),
    "no area": (changed(bbox=[5, 5, 0, 7]), "boxes of no area", r"\[5, 5, 5, 12\]"),
    "negative": (changed(bbox=[9, 9, -4, 4]), "boxes of no area", r"\[9, 9, 5, 13\]"),
    "nan": (changed(bbox=[1, 1, float("nan"), 4]), "annotations without a box", "nan"),
    "beyond": (
        changed(bbox=[40, 5, 20, 7]), "boxes outside the image", "image of width 48, height 56",
    ),
    "far away": (changed(bbox=[400, 5, 20, 7]), "boxes outside the image", "in an image of width"),
    "unknown": (changed(category_id=5), "unknown categories", "category_id is 5"),
    "no image": (changed(image_id=1), "annotations of no image", "image_id is 1"),
    "no size": (
        lambda found: found["images"][0].update(width=None),
        "images without file_name, width and height", "image 100",
    ),
    "missing": (
        lambda found: found["images"][0].update(file_name="absent.png"), "missing images",
        "absent.png is not in",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason", "detail"), BAD.values(), ids=BAD)
def test_bad_annotations_are_one_error_or_counted(change, reason, detail, tmp_path):
    found = broken(change)
    arguments = write_coco(tmp_path, content())
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    says = rf"annotations\.json has 1 bad images: .*{detail}.*\({reason}\)\. on_bad_image: skip"
    with pytest.raises(ArgumentError, match=says):
        coco_boxes(**arguments)
    with pytest.warns(UserWarning, match=rf"annotations\.json: 1 {reason}"):
        source = coco_boxes(**arguments, on_bad_image="skip")
    assert source.passed_over[reason] == 1
    assert len(source.dataset) == (4 if reason == "annotations of no image" else 3)


def test_many_bad_images_are_one_line(tmp_path):
    found = content(6)
    arguments = write_coco(tmp_path, found)
    for each in found["annotations"]:
        each["bbox"] = [0, 0, 0, 0]
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    with pytest.raises(ArgumentError, match=r"has 6 bad images: 0\.png.*and 3 more") as error:
        coco_boxes(**arguments)
    assert "\n" not in str(error.value)


def test_boxes_may_stick_out_by_rounding(tmp_path):
    found = content(1)
    found["annotations"][0]["bbox"] = [30.5, -0.3, 18.2, 56.9]
    _, target = coco_boxes(**write_coco(tmp_path, found)).dataset[0]
    assert target["boxes"][0].tolist() == [30.5, 0.0, 48.0, 56.0]


@pytest.mark.parametrize(
    ("outline", "says"),
    [
        (None, "objects without a mask"),
        ([], "objects without a mask"),
        ([[1, 2, 3, 4]], "objects without a mask"),
        ([[1, 2, 3, 4, 5, 6, 7]], "objects without a mask"),
    ],
)
def test_instances_need_masks(outline, says, tmp_path):
    found = broken(changed(segmentation=outline))
    with pytest.raises(ArgumentError, match=says):
        coco_masks(**write_coco(tmp_path, found))


def test_run_lengths_of_another_size_are_bad_images(tmp_path):
    found = broken(changed(segmentation={"size": [5, 5], "counts": [0, 5, 20]}))
    arguments = write_coco(tmp_path, found)
    says = r"0\.png, annotation 1: run lengths for \(height, width\) \[5, 5\], not \[56, 48\]"
    with pytest.raises(ArgumentError, match=rf"{says} \(masks of another size\)"):
        coco_masks(**arguments)
    with pytest.warns(UserWarning, match="1 masks of another size"):
        source = coco_masks(**arguments, on_bad_image="skip")
    assert source.passed_over == {"masks of another size": 1}
    found = broken(changed(segmentation={"size": 5, "counts": [0, 5, 20]}))
    with pytest.raises(ArgumentError, match="masks of another size"):
        coco_masks(**write_coco(tmp_path, found))


def test_damaged_run_lengths_are_bad_images_when_they_are_read(tmp_path):
    found = broken(changed(segmentation={"size": [56, 48], "counts": "no lengths"}))
    arguments = write_coco(tmp_path, found)
    with pytest.raises(ArgumentError, match=r"0\.png cannot be read with its objects: .*outline"):
        coco_masks(**arguments).dataset[0]
    source = coco_masks(**arguments, on_bad_image="skip")
    assert source.dataset[0] is None
    assert source.skipped() == 1


def test_an_image_of_another_size_is_a_bad_image(tmp_path):
    found = content()
    arguments = write_coco(tmp_path, found)
    found["images"][0] |= {"width": 50, "height": 60}
    (tmp_path / "annotations.json").write_text(json.dumps(found))
    with pytest.raises(ArgumentError, match="48 x 56 pixels, and annotated as 50 x 60"):
        coco_boxes(**arguments).dataset[0]


def test_images_without_objects_are_kept_or_counted(tmp_path):
    found = content()
    first, second = (image["id"] for image in found["images"][:2])
    found["annotations"] = [o for o in found["annotations"] if o["image_id"] != first]
    for each in found["annotations"]:
        each["iscrowd"] = int(each["image_id"] == second)
    arguments = write_coco(tmp_path, found)
    source = coco_boxes(**arguments)
    assert source.dataset[0][1]["boxes"].shape == (0, 4)
    assert len(source.dataset) == 4
    source = coco_boxes(**arguments, keep_empty=False)
    assert len(source.dataset) == 2
    assert source.passed_over == {"images without objects": 2}


def test_a_dataset_without_any_object_is_an_error(tmp_path):
    arguments = write_coco(tmp_path, content() | {"annotations": []})
    with pytest.raises(ArgumentError, match=r"json has no object in any of its 4 images"):
        coco_boxes(**arguments)
    with pytest.raises(ArgumentError, match="has no image to use"):
        coco_boxes(**arguments, keep_empty=False)


def test_keypoints_have_a_row_for_each_object(tmp_path):
    found = content()
    source = coco_keypoints(**write_coco(tmp_path, found))
    _, target = source.dataset[0]
    assert target["keypoints"].shape == (len(target["boxes"]), 4, 3)
    assert target["keypoints"][0].flatten().tolist() == found["annotations"][0]["keypoints"]


def test_keypoints_are_checked(tmp_path):
    found = broken(changed(keypoints=[1, 2, 2]))
    arguments = write_coco(tmp_path, found)
    with pytest.raises(ArgumentError, match="its keypoints are not 12 numbers"):
        coco_keypoints(**arguments)
    found["categories"][0]["keypoints"] = ["nose"]
    with pytest.raises(ArgumentError, match="every category must have the same keypoints"):
        coco_keypoints(**write_coco(tmp_path, found))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not in COCO's format: it has no list of images and annotations and categories"),
        ('{"images": [], "annotations": []}', "has no list of categories"),
        ('{"images": [], "annotations": [], "categories": []}', "found no category"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, '
            '{"id": 1, "name": "b"}]}', "found 1 twice",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}',
            "must have a whole number id",
        ),
        (
            '{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": '
            '[{"id": 1, "name": "a"}]}', "every image must have an id of its own",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "has no image to use",
        ),
    ],
)  # fmt: skip
def test_files_that_are_not_annotations(text, says, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=says) as error:
        coco_boxes(str(tmp_path), str(path))
    assert "\n" not in str(error.value)


def test_files_and_folders_that_are_not_there(tmp_path):
    arguments = write_coco(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent"):
        coco_boxes(**arguments | {"annotations": f"{tmp_path}/absent.json"})
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        coco_boxes(**arguments | {"images": f"{tmp_path}/absent"})
    with pytest.raises(ArgumentError, match="augmentation must be one of hflip, none, ssd, ssdl"):
        coco_boxes(**arguments, augmentation="flip")
    with pytest.raises(ArgumentError, match="on_bad_image must be error or skip"):
        coco_boxes(**arguments, on_bad_image="ignore")
