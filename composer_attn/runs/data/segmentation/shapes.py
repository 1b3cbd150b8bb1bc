"""Drawn shapes with masks, for trying segmentation out without any files."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from composer_attn.runs.data.images import Normalize
from composer_attn.runs.data.segmentation.transforms import collate
from composer_attn.runs.data.shapes import CLASSES, checked_numbers, draw_shapes
from composer_attn.runs.data.source import Source


class _Shapes(Dataset):
    """Images of shapes, drawn on demand."""

    def __init__(self, count: int, size: int, seed: int):
        self.count, self.size, self.seed = count, size, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:  # which ends an iteration
            raise IndexError(index)
        drawing = draw_shapes(self.size, self.seed, index)
        mask = torch.zeros(self.size, self.size, dtype=torch.uint8)
        for shape, label in zip(drawing.masks, drawing.labels.tolist(), strict=True):
            mask[shape] = label + 1
        return drawing.image, mask


def shapes_segmentation(
    split: str, num_samples: int = 512, size: int = 96, seed: int = 0
) -> Source:
    """Draw circles, squares and triangles of any colour on noisy backgrounds.

    Args:
        split: ``train`` or ``test``, which have no image in common.
        num_samples: number of images.
        size: height and width in pixels.
        seed: seed of the images, which are the same in every process and run.

    Returns:
        Pairs of an image ``(3, size, size)`` and a mask ``(size, size)``, uint8: 0 for the
        background, and 1 to 3 for the shapes.

    Raises:
        ArgumentError: there is no such split, or a number is too small.
    """
    count, size, seed = checked_numbers(split, num_samples, size, seed)
    return Source(
        _Shapes(count, size, seed),
        num_classes=1 + len(CLASSES),
        image_shape=(3, size, size),
        classes=("background", *CLASSES),
        collate=collate,
        device_transform=Normalize.by(None, None),
    )
