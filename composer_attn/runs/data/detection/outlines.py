"""Masks of objects, from the polygons or run lengths in which COCO annotates them."""

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
    return bool(polygons) and all(isinstance(p, list) and len(p) >= 6 for p in polygons)


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
