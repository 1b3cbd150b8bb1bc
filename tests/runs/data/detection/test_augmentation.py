"""Augmentation of images with objects: what moves together, what is dropped, what is repeated."""

import pytest
import torch

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.detection.augmentation import AUGMENTATIONS, MirrorKeypoints
from composer_attn.runs.data.detection.coco import coco_boxes, coco_keypoints, coco_masks
from tests.detection_data import COLOURS, content, write_coco

IDS = {1: 3, 2: 7, 3: 90}


def samples(source, seed=0, epoch=0, **options):
    loader = build_loader(source, 2, train=True, seed=seed, **options).dataloader
    loader.sampler.set_epoch(epoch)
    return [sample for batch in loader for sample in zip(*batch, strict=True)]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_and_masks_stay_on_their_objects(name, tmp_path):
    found = content(6)
    found["annotations"] = [  # one in each image: others might cover it
        next(o for o in found["annotations"] if o["image_id"] == i["id"]) for i in found["images"]
    ]
    source = coco_masks(**write_coco(tmp_path, found), augmentation=name)
    boxes = 0
    for image, target in samples(source):
        assert target["boxes"].shape[0] == target["labels"].shape[0] == target["masks"].shape[0]
        assert target["iscrowd"].shape == target["labels"].shape
        for box, label, mask in zip(
            target["boxes"], target["labels"], target["masks"], strict=True
        ):
            left, top, right, bottom = box.round().int().tolist()
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            if name in ("none", "hflip"):
                inside = image[:, top:bottom, left:right].flatten(1)
                assert (torch.tensor(COLOURS[IDS[int(label)]]) == inside.T).all()
            boxes += 1
    assert boxes >= 3


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_augmentation_depends_on_seed_epoch_and_image_alone(workers, tmp_path):
    arguments = write_coco(tmp_path)

    def drawn(seed=0, epoch=0, **options):
        torch.manual_seed(torch.initial_seed() + 1)  # whatever else was drawn before
        source = coco_boxes(**arguments, augmentation="ssd")
        return torch.cat([i.flatten() for i, _ in samples(source, seed, epoch, **options)])

    alone = drawn()
    assert torch.equal(alone, drawn(num_workers=workers))
    assert not torch.equal(alone[:2000], drawn(seed=1)[:2000])
    assert not torch.equal(alone[:2000], drawn(epoch=1)[:2000])


def test_areas_are_left_out_where_objects_are_cropped(tmp_path):
    arguments = write_coco(tmp_path)
    assert "area" in samples(coco_boxes(**arguments, augmentation="hflip"))[0][1]
    assert "area" not in samples(coco_boxes(**arguments, augmentation="ssdlite"))[0][1]


def test_mirrored_keypoints_change_sides(tmp_path):
    source = coco_keypoints(**write_coco(tmp_path), augmentation="hflip")
    plain = coco_keypoints(**write_coco(tmp_path))
    image, target = plain.dataset[0]
    mirror = source.dataset.transform
    assert isinstance(mirror, MirrorKeypoints)
    assert mirror.swapped == [0, 2, 1, 3]
    torch.manual_seed(0)
    tried = [mirror(image, target) for _ in range(8)]
    flipped = next((i, t) for i, t in tried if not torch.equal(i, image))
    assert any(torch.equal(i, image) for i, _ in tried)
    assert torch.equal(flipped[0], image.flip(-1))
    points, before = flipped[1]["keypoints"], target["keypoints"]
    # left_top is where right_top was, seen from the other side, with its visibility.
    torch.testing.assert_close(points[:, 1, 0], 48 - before[:, 2, 0])
    assert torch.equal(points[:, 1, 1:], before[:, 2, 1:])
    assert (points[:, 3] == 0).all()  # not annotated
    assert torch.equal(target["keypoints"], before)


def test_keypoints_cannot_be_cropped(tmp_path):
    with pytest.raises(ArgumentError, match="augmentation of keypoints must be one of hflip, none"):
        coco_keypoints(**write_coco(tmp_path), augmentation="ssd")
