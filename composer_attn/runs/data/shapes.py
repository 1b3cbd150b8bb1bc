"""Drawn circles, squares and triangles, to train detection and segmentation without any files."""

from dataclasses import dataclass

import torch
from torch import Tensor

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError

CLASSES = ("circle", "square", "triangle")
# Points of every shape: the middles of its sides, of a triangle its apex, corners and base.
POINTS = ("top", "left", "right", "bottom")
_SPLITS = {"train": 0, "test": 1}
_SMALLEST = 32
_MOST = 4  # shapes in an image
_TRIES = 30  # of placing a shape beside those before it
_LEAST_CONTRAST = 60  # between the shape and the background, in brightness levels


@dataclass(frozen=True)
class Drawing:
    """An image of shapes, and where they are.

    Attributes:
        image: ``(3, size, size)``, uint8.
        boxes: ``(n, 4)``, float32: left, top, right and bottom of each shape in pixels, of which
            the last two are beyond its last pixel.
        masks: ``(n, size, size)``, bool: the pixels of each shape.
        labels: ``(n,)``, int64: index of its name in :data:`CLASSES`.
    """

    image: Tensor
    boxes: Tensor
    masks: Tensor
    labels: Tensor

    @property
    def keypoints(self) -> Tensor:
        """Where the :data:`POINTS` of each shape are, ``(n, 4, 3)``, float32.

        These are x and y of the middle of a pixel of the shape, and 2 for visible.

        Example:
            >>> draw_shapes(64, seed=0, index=3).keypoints.shape[1:]
            torch.Size([4, 3])
        """
        left, top, right, bottom = (self.boxes + torch.tensor([0.5, 0.5, -0.5, -0.5])).T
        x, y = (left + right) / 2, (top + bottom) / 2
        beside = torch.where(self.labels == CLASSES.index("triangle"), bottom, y)
        points = [(x, top), (left, beside), (right, beside), (x, bottom)]
        visible = torch.full_like(x, 2)
        return torch.stack([torch.stack([*each, visible], 1) for each in points], 1)


def checked_numbers(split: str, num_samples: int, size: int, seed: int) -> tuple[int, int, int]:
    """Return number of images, size and seed of a split, which has no image of the other one.

    Raises:
        ArgumentError: there is no such split, or a number is too small.

    Example:
        >>> checked_numbers("test", 512, 96, seed=3)
        (512, 96, 7)
    """
    if split not in _SPLITS:
        raise ArgumentError(f"split must be train or test; got {split!r}")
    count = whole_number("num_samples", num_samples)
    size = whole_number("size", size, _SMALLEST)
    return count, size, 2 * whole_number("seed", seed, 0) + _SPLITS[split]


def draw_shapes(size: int, seed: int, index: int) -> Drawing:
    """Draw one to four shapes, of any colour, beside one another on a noisy background.

    Sizes, colours and places are random, and equal for equal arguments in every process.

    Args:
        size: height and width in pixels, at least 32.
        seed: seed of the dataset.
        index: number of the image.

    Example:
        >>> drawing = draw_shapes(64, seed=0, index=3)
        >>> drawing.image.shape, len(drawing.boxes) == len(drawing.masks) == len(drawing.labels)
        (torch.Size([3, 64, 64]), True)
    """
    generator = torch.Generator().manual_seed(hash((seed, index)) & 0x7FFF_FFFF_FFFF_FFFF)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    background = torch.randint(256, (3, 1, 1), generator=generator)
    noise = torch.randint(-24, 25, (3, size, size), generator=generator)
    image = (background + noise).clamp(0, 255)
    masks, labels = [], []
    taken = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(whole(1, _MOST)):
        label = whole(0, len(CLASSES) - 1)
        for _ in range(_TRIES):
            radius = whole(size // 10, size // 5)
            centre = whole(radius, size - 1 - radius), whole(radius, size - 1 - radius)
            mask = _mask(CLASSES[label], size, radius, *centre)
            if not (mask & taken).any():
                break
        else:
            continue  # there is no room left, which cannot be so for the first
        taken |= mask
        colour = _contrasting(background, generator)
        image = torch.where(mask, (colour + noise // 2).clamp(0, 255), image)
        masks.append(mask)
        labels.append(label)
    every = torch.stack(masks)
    return Drawing(image.to(torch.uint8), _boxes(every), every, torch.tensor(labels))


def _mask(name: str, size: int, radius: int, x: int, y: int) -> Tensor:
    """Return the pixels of a shape that fits into a square of ``2 radius + 1`` pixels."""
    across = torch.arange(size)[None] - x
    down = torch.arange(size)[:, None] - y
    if name == "circle":
        return across**2 + down**2 <= radius**2
    inside = down.abs() <= radius
    if name == "square":
        return inside & (across.abs() <= radius)
    return inside & (2 * across.abs() <= down + radius)


def _contrasting(background: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a colour ``(3, 1, 1)`` that differs from the background in at least one channel."""
    while True:
        colour = torch.randint(256, (3, 1, 1), generator=generator)
        if int((colour - background).abs().max()) >= _LEAST_CONTRAST:
            return colour


def _boxes(masks: Tensor) -> Tensor:
    """Return the boxes ``(n, 4)`` that masks ``(n, size, size)`` just fit into."""
    boxes = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(boxes, dtype=torch.float32)
