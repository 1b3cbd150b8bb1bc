"""Images with the objects in them: samples, and batches of them, of any sizes."""

import logging
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from composer.utils import dist
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection.annotated import Annotated, BadImages
from composer_attn.runs.data.detection.augmentation import build_augmentation, keeps_areas
from composer_attn.runs.data.detection.keypoints import Keypoints
from composer_attn.runs.data.detection.outlines import masks_of, numbered_masks
from composer_attn.runs.data.images import to_rgb
from composer_attn.runs.data.segmentation.pairs import read_mask
from composer_attn.runs.data.source import Source

log = logging.getLogger(__name__)

# What a task needs of the objects in an image, besides boxes and classes.
Wanted = Literal["boxes", "masks", "keypoints"]
Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


class Objects(Dataset):
    """Images with their objects, as torchvision's networks take them.

    A sample is an image ``(3, H, W)``, uint8, and its target: ``boxes`` ``(N, 4)``, float32, x and
    y of two corners in pixels; ``labels`` ``(N,)``, from 1 on; ``iscrowd`` ``(N,)``, 1 for what is
    not trained on and passed over in evaluation; ``area`` ``(N,)``, absent if objects are cropped;
    ``image_id``, the index of the image; and ``masks`` ``(N, H, W)``, uint8, or ``keypoints``
    ``(N, K, 3)``. A sample that is skipped is None.

    Args:
        images: the images.
        transform: augments an image and its target, both of torchvision's ``tv_tensors``.
        wanted: what to load besides boxes.
        skip: whether to leave out images that cannot be read, and to count them.
        areas: whether areas hold after ``transform``.
    """

    def __init__(
        self,
        images: Sequence[Annotated],
        transform: Callable[..., Any],
        wanted: Wanted,
        skip: bool,
        areas: bool,
    ):
        self.images, self.transform = images, transform
        self.wanted, self.areas = wanted, areas
        self._skip = skip
        self._skipped = multiprocessing.Value("q", 0)  # shared with the worker processes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | None:
        found = self.images[index]
        try:
            image = _read(found)
            target = self._target(found, index)
        except Exception as error:  # of any type: the file may contain anything
            if not self._skip:
                raise ArgumentError(
                    f"{found.path} cannot be read with its objects: {error}. on_bad_image: skip "
                    "leaves such images out, and counts them"
                ) from error
            with self._skipped.get_lock():
                self._skipped.value += 1
            log.warning("skipped %s: %s", found.path, error)
            return None
        return self.transform(image, target)

    def skipped(self) -> int:
        """Return the number of times that an image was skipped, in all processes of this rank."""
        return self._skipped.value

    def _target(self, found: Annotated, index: int) -> Target:
        boxes = torch.from_numpy(found.boxes)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=found.size),
            "labels": torch.from_numpy(found.labels),
            "iscrowd": torch.from_numpy(found.crowds).long(),
            "image_id": torch.tensor(index),
        }
        if self.areas:
            target["area"] = torch.from_numpy(found.areas)
        if self.wanted == "masks":
            target["masks"] = tv_tensors.Mask(_masks(found))
        if found.keypoints is not None:
            target["keypoints"] = torch.from_numpy(found.keypoints)
        return target


def _masks(found: Annotated) -> Tensor:
    if found.mask is None:
        return masks_of(found.outlines, found.size)
    return numbered_masks(read_mask(found.mask), len(found.labels))


def _read(found: Annotated) -> tv_tensors.Image:
    with Image.open(found.path) as file:
        image = tv_tensors.Image(functional.pil_to_tensor(to_rgb(file)))
    if tuple(image.shape[1:]) != found.size:
        height, width = found.size
        raise ArgumentError(
            f"it is {image.shape[2]} x {image.shape[1]} pixels, and annotated as {width} x {height}"
        )
    return image


def collate_objects(samples: list[tuple[Tensor, Target] | None]) -> Batch:
    """Batch images of any sizes as a list, and targets as another, leaving out skipped ones.

    Raises:
        ArgumentError: all were skipped.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise ArgumentError(f"none of the {len(samples)} images of a batch can be read")
    # Plain tensors: on them the networks' arithmetic has no overhead.
    images = [image.as_subclass(Tensor) for image, _ in found]
    targets = [{n: t.as_subclass(Tensor) for n, t in target.items()} for _, target in found]
    return images, targets


def count_images(batch: Batch) -> int:
    """Return the number of images in a batch."""
    return len(batch[0])


def split_images(batch: Batch, size: int | float) -> list[Batch]:
    """Split a batch into batches of at most ``size`` images."""
    images, targets = batch
    step = int(size)
    starts = range(0, len(images), step)
    return [(images[i : i + step], targets[i : i + step]) for i in starts]


def to_floats(images: Any) -> Any:
    """Convert images of bytes to values from 0 to 1; the networks normalize them."""
    return [image.float() / 255 for image in images]


def source_of(
    images: Sequence[Annotated],
    classes: tuple[str, ...],
    wanted: Wanted,
    augmentation: str,
    bad: BadImages,
    keep_empty: bool,
    points: Keypoints | None = None,
) -> Source:
    """Return the source of annotated images.

    Args:
        images: the images.
        classes: the names of the labels, from 1 on.
        wanted: what to load besides boxes.
        augmentation: the name of an augmentation.
        bad: the images left out while reading annotations.
        keep_empty: whether to keep images without objects.
        points: the keypoints of the objects, if they have any.

    Raises:
        ArgumentError: there is no such augmentation, or no image is left, or none has an object.

    Warns:
        UserWarning: images are left out as bad.
    """
    transform = build_augmentation(augmentation, points.swapped if points else None)
    kept = [image for image in images if keep_empty or not image.empty]
    if not kept:
        raise ArgumentError(f"{bad.where} has no image to use")
    if not any(len(image.labels) for image in kept):
        raise ArgumentError(f"{bad.where} has no object in any of its {len(kept):,} images")
    passed_over = {**bad.counts}
    if len(kept) < len(images):
        passed_over["images without objects"] = len(images) - len(kept)
    if bad.counts and dist.get_local_rank() == 0:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in bad.counts.items())
        warnings.warn(f"left out of {bad.where}: {counted}", stacklevel=2)
    dataset = Objects(kept, transform, wanted, bad.skip, keeps_areas(augmentation))
    height, width = Counter(image.size for image in kept).most_common(1)[0][0]
    return Source(
        dataset,
        num_classes=len(classes),
        image_shape=(3, height, width),
        classes=classes,
        collate=collate_objects,
        device_transform=to_floats,
        random=augmentation != "none",
        passed_over=passed_over,
        skipped=dataset.skipped,
        count=count_images,
        split=split_images,
        keypoints=len(points.names) if points else 0,
    )
