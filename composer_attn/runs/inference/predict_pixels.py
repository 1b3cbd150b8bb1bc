"""Classify the pixels of image files with a trained network."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional

from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.data.images import Normalize
from composer_attn.runs.inference.index_images import IndexImages, read_image
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.tasks.table import find_task


@dataclass(frozen=True)
class Share:
    """A class, and its share of the pixels of an image, from 0 to 1."""

    name: str
    index: int
    share: float


@dataclass(frozen=True)
class Segmented:
    """The classes in an image file, in descending order of their shares.

    Attributes:
        image: the file.
        mask: the file with the index of the class of each pixel.
        classes: the classes.
    """

    image: str
    mask: str
    classes: tuple[Share, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{each.name} {each.share:.2%}" for each in self.classes)
        return f"{self.image}: {self.mask}: {shares}"


def predict_pixels(
    run: LoadedRun, images: Sequence[str | Path], out: str | Path
) -> list[Segmented]:
    """Write a mask for each image file, as large as the image, and return its classes.

    Images are resized and normalized as for the run's evaluation, and the logits resized to the
    image's own size.

    Args:
        run: a run of semantic segmentation.
        images: image files of any sizes.
        out: the folder of the masks, ``NAME.png`` for each image: each pixel is the index of its
            class.

    Raises:
        ArgumentError: a file cannot be read as an image, or a mask cannot be written.
    """
    files, (resize, normalize) = IndexImages(out, images), _preparation(run.config)
    found = []
    for path in images:
        pixels = read_image(path)
        indices = _indices(run, pixels, resize, normalize)
        values, counts = np.unique(indices, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shares = (
            Share(run.classes[index], int(index), float(count / indices.size))
            for index, count in zip(values[order], counts[order], strict=True)
        )
        found.append(Segmented(str(path), files.add(path, indices), tuple(shares)))
    files.write()
    return found


def _indices(
    run: LoadedRun, pixels: Tensor, resize: int | None, normalize: Normalize
) -> np.ndarray:
    image = pixels if resize is None else functional.resize(pixels, [resize])
    with torch.inference_mode():
        logits = run.network(normalize(image[None]))["out"]
        whole = F.interpolate(logits, tuple(pixels.shape[-2:]), mode="bilinear")
    indices: np.ndarray = whole[0].argmax(0).to(torch.uint8).numpy()
    return indices


def _preparation(config: RunConfig) -> tuple[int | None, Normalize]:
    """Return the length of the shorter side, if images are resized, and how to normalize."""
    section: dict[str, Any] = config.eval_dataset or config.train_dataset
    taken = inspect.signature(find_task(config.task).datasets[section["name"]]).parameters
    resize = section.get("resize", taken["resize"].default) if "resize" in taken else None
    return resize, Normalize.by(section.get("mean"), section.get("std"))
