"""Augmentation of images together with their masks, and batches of them."""

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import IMAGENET_MEAN

# Pixels without a class, which neither the loss nor the metrics count.
IGNORED = 255
RANDOM = "random_resize_crop"
AUGMENTATIONS = (RANDOM, "resize")
"""
Augmentations by name: ``random_resize_crop``, as in torchvision's reference, resizes the shorter
side to between half and twice its usual length, crops a square, padded where the image is smaller,
and flips at random; ``resize``, for evaluation, resizes the shorter side.
"""


def build_transform(augmentation: str, size: int, resize: int) -> v2.Transform:
    """Build a transform of an image together with its mask.

    Args:
        augmentation: one of :data:`AUGMENTATIONS`.
        size: height and width of crops, in pixels.
        resize: usual length of the shorter side, in pixels.

    Raises:
        ArgumentError: there is no such augmentation, or a size is no whole number.
    """
    if augmentation not in AUGMENTATIONS:
        raise ArgumentError(
            f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {augmentation!r}"
        )
    size, resize = whole_number("size", size), whole_number("resize", resize, 2)
    if augmentation == "resize":
        return v2.Resize(resize)
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
    return v2.Compose(
        [
            v2.RandomResize(resize // 2, 2 * resize),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
        ]
    )


def collate(samples: list[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
    """Batch images ``(3, H, W)`` and masks ``(H, W)``, leaving out skipped ones (``None``).

    Images are padded to the largest height and width with the mean colour of ImageNet, which is
    about zero once they are normalized, and masks with :data:`IGNORED`.

    Raises:
        ArgumentError: all were skipped.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise ArgumentError(f"none of the {len(samples)} images of a batch can be read")
    height, width = (max(mask.shape[i] for _, mask in found) for i in (0, 1))
    gray = torch.tensor([round(255 * mean) for mean in IMAGENET_MEAN], dtype=torch.uint8)
    # In a worker, PyTorch's collation writes directly to memory shared with the main process.
    images, masks = default_collate(
        [
            (_padded(image.permute(1, 2, 0), height, width, gray), _padded(mask, height, width))
            for image, mask in found
        ]
    )
    return images.permute(0, 3, 1, 2), masks


def _padded(values: Tensor, height: int, width: int, fill: Tensor | int = IGNORED) -> Tensor:
    """Pad ``(H, W, ...)`` at the bottom and on the right."""
    if values.shape[:2] == (height, width):
        return values
    padded = values.new_empty((height, width, *values.shape[2:]))
    padded[:] = fill
    padded[: values.shape[0], : values.shape[1]] = values
    return padded
