"""An image and the objects in it, as annotated, and the images whose annotations are no use."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from composer_attn.errors import ArgumentError, first_few

# Coordinates in the COCO annotations are rounded: their boxes stick out by a fraction of a pixel.
_SLACK = 1.0
NO_BOX = "annotations without a box"

# x and y of the upper left corner, then of the lower right one, in pixels.
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotated:
    """The objects in an image.

    Attributes:
        path: the file of the image.
        size: its height and width in pixels.
        boxes: x and y of the upper left and of the lower right corner of each object, in pixels,
            ``(N, 4)``, float32.
        labels: their classes, from 1 on: 0 is the background, ``(N,)``, int64.
        crowds: whether a box holds a crowd, or an object that evaluation passes over, ``(N,)``.
        areas: areas in square pixels, ``(N,)``, float32.
        outlines: for each object, its polygons or its run lengths, as COCO writes them.
        keypoints: x, y and visibility (0 not annotated, 1 hidden, 2 visible) of the points of each
            object, ``(N, K, 3)``, float32.
        mask: an image whose pixels are the number of the object that they belong to, from 1 on in
            the order of the others, instead of outlines.
    """

    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    outlines: tuple[Any, ...] = ()
    keypoints: np.ndarray | None = None
    mask: Path | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing in it can be learned: no object at all, or crowds only."""
        return bool(self.crowds.all())


class BadImages:
    """Images that cannot be used: one error that lists the first ones, or their number by reason.

    Args:
        where: the file or folder of the annotations, for messages.
        on_bad_image: ``error``, or ``skip`` to leave out such images, and count them.

    Attributes:
        counts: number of images left out, by reason.

    Raises:
        ArgumentError: ``on_bad_image`` is neither.

    Example:
        >>> bad = BadImages("train.json", "skip")
        >>> bad.add("boxes outside the image", "7.jpg: [90, 0, 140, 20] in 100 x 100")
        >>> bad.check()
        >>> dict(bad.counts)
        {'boxes outside the image': 1}
    """

    def __init__(self, where: str | os.PathLike, on_bad_image: str):
        if on_bad_image not in ("error", "skip"):
            raise ArgumentError(f"on_bad_image must be error or skip; got {on_bad_image!r}")
        self.where, self.skip = where, on_bad_image == "skip"
        self.counts: Counter[str] = Counter()
        self._told: list[str] = []

    def add(self, reason: str, detail: str) -> None:
        """Note an image: the reason in the plural, and what it is in this one."""
        self.counts[reason] += 1
        self._told.append(f"{detail} ({reason})")

    def check(self) -> None:
        """Raise if images were noted, unless they are to be skipped.

        Raises:
            ArgumentError: they are not.
        """
        if self._told and not self.skip:
            raise ArgumentError(
                f"{self.where} has {len(self._told):,} bad images: {first_few(self._told, '; ')}. "
                "on_bad_image: skip leaves such images out, and counts them"
            )


class BadAnnotationError(Exception):
    """An annotation is no use; raised and caught while reading annotations.

    Attributes:
        reason: what is wrong, in the plural and without details.
    """

    def __init__(self, reason: str, detail: str):
        self.reason = reason
        super().__init__(detail)


def clipped(box: Corners, size: tuple[int, int]) -> Corners:
    """Return a box, clipped to its image.

    Args:
        box: x and y of the upper left and of the lower right corner, in pixels.
        size: height and width of the image.

    Raises:
        BadAnnotationError: the box has no area, or sticks out of the image by more than a pixel.
    """
    left, top, right, bottom = box
    height, width = size
    shown = f"the box [{', '.join(f'{value:g}' for value in box)}] (x, y, x, y)"
    if not (left < right and top < bottom):  # nor if a coordinate is nan
        raise BadAnnotationError("boxes of no area", shown)
    far = min(left, top) < -_SLACK or right > width + _SLACK or bottom > height + _SLACK
    if far or left >= width or top >= height or right <= 0 or bottom <= 0:
        detail = f"{shown} in an image of width {width}, height {height}"
        raise BadAnnotationError("boxes outside the image", detail)
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
