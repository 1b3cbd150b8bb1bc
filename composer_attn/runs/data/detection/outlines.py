"""Masks of objects: from COCO's polygons or run lengths, or from an image of their numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer_attn.errors import ArgumentError
from composer_attn.extras import naming_the_extra


def is_outline(outline: Any) -> bool:
    """Return whether an annotation's ``segmentation`` is one: polygons, or run lengths."""
    if isinstance(outline, Mapping):
        return "counts" in outline and "size" in outline
    polygons = outline if isinstance(outline, list) else []
    whole = (isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
    return bool(polygons) and all(whole)


def masks_of(outlines: Sequence[Any], size: tuple[int, int]) -> Tensor:
    """Draw the masks of the objects in an image.

    Args:
        outlines: for each object, a list of polygons ``[x, y, x, y, ...]``, or run lengths
            ``{counts, size}``.
        size: height and width of the image.

    Returns:
        0 and 1, ``(N, H, W)``, uint8.

    Raises:
        ArgumentError: an outline is damaged, or of an image of another size.
        MissingExtraError: faster-coco-eval is not installed.

    Example:
        >>> masks_of([[[1, 1, 4, 1, 4, 3, 1, 3]]], (4, 6)).sum()
        tensor(6)
    """
    with naming_the_extra("masks in COCO's format"):
        from faster_coco_eval import mask as coding
    height, width = size
    masks = torch.zeros(len(outlines), height, width, dtype=torch.uint8)
    for mask, outline in zip(masks, outlines, strict=True):
        try:
            lengths = coding.segmToRle(outline, width, height)
            drawn = coding.decode(lengths)
        except Exception as error:  # of any type: the file may contain anything
            raise ArgumentError(f"a damaged outline: {error}") from error
        if drawn.shape != (height, width):
            raise ArgumentError(f"an outline of an image of {drawn.shape}, not of {size}")
        mask.copy_(torch.from_numpy(np.ascontiguousarray(drawn)))
    return masks


def numbered_masks(numbers: np.ndarray, count: int) -> Tensor:
    """Return the masks of objects from an image of their numbers, as Pascal VOC has them.

    Args:
        numbers: ``(H, W)``: the number of the object that a pixel belongs to, from 1 on; 0 or
            another number for none.
        count: number of objects.

    Returns:
        0 and 1, ``(count, H, W)``, uint8.

    Example:
        >>> numbered_masks(np.array([[0, 1, 2], [255, 2, 2]]), 2).sum((1, 2))
        tensor([1, 3])
    """
    objects = torch.arange(1, count + 1)[:, None, None]
    return (torch.from_numpy(numbers)[None] == objects).to(torch.uint8)
