"""Write small images with masks."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pair(
    image: Path, mask: Path, size: tuple[int, int] = (40, 30), classes: int = 3, seed: int = 0
) -> np.ndarray:
    """Write an image ``(width, height)`` whose colours are those of its mask's classes.

    Returns:
        The mask ``(height, width)``; its left column has no class.
    """
    random = np.random.default_rng(seed)
    indices = np.full((size[1], size[0]), 255, np.uint8)
    indices[:, 1:] = random.integers(classes)
    top = random.integers(4, size[1] - 4)
    indices[top:, size[0] // 2 :] = random.integers(classes)
    colours = np.array([(30, 60, 90), (200, 40, 40), (40, 200, 40), (40, 40, 220)], np.uint8)
    pixels = colours[np.where(indices == 255, 0, indices)]
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    palette.putdata(indices.ravel().tolist())
    palette.save(mask)
    return indices


def write_mask_folder(root: Path, count: int = 4, **options) -> list[np.ndarray]:
    """Write ``images/`` and ``masks/``; return the masks."""
    return [
        write_pair(
            root / "images" / f"{i:02}.png", root / "masks" / f"{i:02}.png", seed=i, **options
        )
        for i in range(count)
    ]


def write_voc(root: Path, train: int = 4, val: int = 2) -> None:
    """Write the part of VOC 2012 that its segmentation needs."""
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, count, first in (("train", train, 0), ("val", val, train)):
        names = [f"2012_{first + i:06}" for i in range(count)]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for i, name in enumerate(names):
            write_pair(
                base / "JPEGImages" / f"{name}.jpg",
                base / "SegmentationClass" / f"{name}.png",
                size=(50 + i, 40),
                seed=first + i,
            )
