"""Augmentations of images with boxes, masks and keypoints, as torchvision's recipes have them.

The networks resize images themselves (``min_size`` and ``max_size``), several sizes at random
included, so that no augmentation here does.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from composer_attn.errors import ArgumentError

# What is enlarged around an image: about the mean of ImageNet's bytes.
_FILL = (123.0, 117.0, 104.0)
# Entries of a target with a row for each object, besides those that torchvision knows.
_ROWS = ("labels", "iscrowd", "area", "keypoints")


def rows_of(sample: Any) -> tuple[Tensor, ...]:
    """Return the entries of a target that lose a row with each box that is cropped away."""
    target = sample[1]
    return tuple(target[name] for name in _ROWS if name in target)


def _none() -> list[nn.Module]:
    return []


def _hflip() -> list[nn.Module]:
    return [v2.RandomHorizontalFlip()]


def _ssdlite() -> list[nn.Module]:
    whole = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(labels_getter=rows_of)]
    return [v2.RandomIoUCrop(), *whole, *_hflip()]


def _ssd() -> list[nn.Module]:
    fill = {tv_tensors.Image: list(_FILL), "others": 0}
    return [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=fill), *_ssdlite()]


AUGMENTATIONS: dict[str, Callable[[], list[nn.Module]]] = {
    "hflip": _hflip,
    "none": _none,
    "ssd": _ssd,
    "ssdlite": _ssdlite,
}
"""
Augmentations by name: ``none``, for evaluation; ``hflip``, a random mirror image, all that
torchvision trains its two-stage networks with; ``ssdlite``, which also crops at random, with a
minimum overlap; ``ssd``, which also distorts colours and zooms out.
"""


class MirrorKeypoints(nn.Module):
    """Mirrors an image with its boxes and keypoints with probability 1/2.

    What is left becomes right: the points of each pair change places. Points that are not annotated
    stay at 0, 0.

    Args:
        swapped: the index of each point in a mirrored image.
    """

    def __init__(self, swapped: tuple[int, ...]):
        super().__init__()
        self.swapped = list(swapped)

    def forward(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the image and its target, mirrored or as they are."""
        if torch.rand(1).item() >= 0.5:
            return image, target
        points = target["keypoints"][:, self.swapped].clone()
        points[..., 0] = image.shape[-1] - points[..., 0]
        points[points[..., 2] == 0] = 0
        boxes = functional.horizontal_flip(target["boxes"])
        return functional.horizontal_flip(image), {**target, "boxes": boxes, "keypoints": points}


def build_augmentation(name: str, swapped: tuple[int, ...] | None = None) -> Callable[..., Any]:
    """Build a transform of an image and its target.

    Args:
        name: one of :data:`AUGMENTATIONS`.
        swapped: the index of each keypoint in a mirrored image, if there are keypoints.

    Raises:
        ArgumentError: there is no such augmentation, or none of keypoints.
    """
    valid = list(AUGMENTATIONS) if swapped is None else ["hflip", "none"]
    if name not in valid:
        of = "" if swapped is None else " of keypoints"
        raise ArgumentError(f"augmentation{of} must be one of {', '.join(valid)}; got {name!r}")
    if name == "hflip" and swapped is not None:
        return MirrorKeypoints(swapped)
    return v2.Compose([v2.Identity(), *AUGMENTATIONS[name]()])  # at least one is required


def keeps_areas(name: str) -> bool:
    """Return whether an augmentation leaves objects whole and of their size."""
    return name in ("hflip", "none")
