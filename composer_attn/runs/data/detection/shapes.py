"""Drawn shapes with boxes, masks and keypoints, for trying detection out without any files."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from composer_attn.runs.data.detection.augmentation import build_augmentation
from composer_attn.runs.data.detection.keypoints import Keypoints
from composer_attn.runs.data.detection.objects import (
    Target,
    Wanted,
    collate_objects,
    count_images,
    split_images,
    to_floats,
)
from composer_attn.runs.data.shapes import CLASSES, POINTS, checked_numbers, draw_shapes
from composer_attn.runs.data.source import Source


class _Shapes(Dataset):
    """Images of shapes, drawn on demand."""

    def __init__(self, count: int, size: int, seed: int, augmentation: str, wanted: Wanted):
        self.count, self.size, self.seed, self.wanted = count, size, seed, wanted
        swapped = Keypoints.named(POINTS).swapped if wanted == "keypoints" else None
        self.transform = build_augmentation(augmentation, swapped)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        if not 0 <= index < self.count:  # which ends an iteration
            raise IndexError(index)
        drawing = draw_shapes(self.size, self.seed, index)
        canvas = (self.size, self.size)
        target = {
            "boxes": tv_tensors.BoundingBoxes(drawing.boxes, format="XYXY", canvas_size=canvas),
            "labels": drawing.labels + 1,
            "iscrowd": torch.zeros_like(drawing.labels),
            "image_id": torch.tensor(index),
        }
        if self.wanted == "masks":
            target["masks"] = tv_tensors.Mask(drawing.masks.to(torch.uint8))
        if self.wanted == "keypoints":
            target["keypoints"] = drawing.keypoints
        return self.transform(tv_tensors.Image(drawing.image), target)


def _shapes(
    wanted: Wanted,
    split: str,
    num_samples: int = 512,
    size: int = 96,
    seed: int = 0,
    augmentation: str = "none",
) -> Source:
    """Draw circles, squares and triangles of any colour on noisy backgrounds.

    Args:
        wanted: what to draw besides boxes; set by the task.
        split: ``train`` or ``test``, which have no image in common.
        num_samples: number of images.
        size: height and width in pixels.
        seed: seed of the images, which are the same in every process and run.
        augmentation: one of :data:`~composer_attn.runs.data.detection.augmentation.AUGMENTATIONS`.

    Returns:
        Images ``(3, size, size)`` with one to four shapes each; the keypoints of a shape are the
        four :data:`~composer_attn.runs.data.shapes.POINTS`.

    Raises:
        ArgumentError: there is no such split or augmentation, or a number is too small.
    """
    count, size, seed = checked_numbers(split, num_samples, size, seed)
    return Source(
        _Shapes(count, size, seed, augmentation, wanted),
        num_classes=len(CLASSES),
        image_shape=(3, size, size),
        classes=CLASSES,
        collate=collate_objects,
        device_transform=to_floats,
        random=augmentation != "none",
        count=count_images,
        split=split_images,
        keypoints=len(POINTS) if wanted == "keypoints" else 0,
    )


shapes_boxes = partial(_shapes, "boxes")
shapes_masks = partial(_shapes, "masks")
shapes_keypoints = partial(_shapes, "keypoints")
