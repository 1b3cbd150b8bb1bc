"""Images and masks from files: checked before training, read and augmented together."""

import logging
import multiprocessing
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from composer.utils import dist
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from composer_attn.errors import ArgumentError, first_few, first_line
from composer_attn.runs.data.images import to_rgb
from composer_attn.runs.data.segmentation.transforms import IGNORED
from composer_attn.runs.data.shared_checks import map_over_ranks

log = logging.getLogger(__name__)

Pair = tuple[Path, Path]
# Modes of Pillow whose values are indices: of a palette, or grey levels.
_MODES = ("P", "L", "1")
_SKIP = "on_bad_image: skip leaves such pairs out, and counts them"


class Pairs(Dataset):
    """Images with their masks, both uint8: ``(3, H, W)`` and ``(H, W)``.

    All pairs are checked at once, each by one of the ranks: whether the mask can be read, is of the
    size of its image, and holds no other class. Of the images only their size is read.

    Args:
        pairs: the files of each image and its mask.
        transform: augments both together.
        num_classes: values of masks are 0 to ``num_classes - 1``, or 255 for pixels of no class.
        on_bad_image: ``error``, or ``skip`` to leave out pairs that cannot be used, and count them.

    Raises:
        ArgumentError: a pair cannot be used; or, of those that are skipped, all.
    """

    def __init__(
        self, pairs: Sequence[Pair], transform: v2.Transform, num_classes: int, on_bad_image: str
    ):
        if on_bad_image not in ("error", "skip"):
            raise ArgumentError(f"on_bad_image must be error or skip; got {on_bad_image!r}")
        self.transform = transform
        self._skip = on_bad_image == "skip"
        self.pairs, left_out = _usable(pairs, num_classes, self._skip)
        # Shared with the worker processes.
        self._skipped = multiprocessing.Value("q", left_out)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        path, mask_path = self.pairs[index]
        try:
            with Image.open(path) as file:
                image = tv_tensors.Image(v2.functional.pil_to_tensor(to_rgb(file)))
        except Exception as error:  # of any type: the file may contain anything
            if not self._skip:
                raise ArgumentError(f"{path} cannot be read as an image: {error}. {_SKIP}") from (
                    error
                )
            with self._skipped.get_lock():
                self._skipped.value += 1
            log.warning("skipped %s: %s", path, error)
            return None
        mask = tv_tensors.Mask(torch.from_numpy(read_mask(mask_path)))
        image, mask = self.transform(image, mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

    def skipped(self) -> int:
        """Return how many pairs were left out, and how often an image could not be read since."""
        return self._skipped.value


def read_mask(path: Path) -> np.ndarray:
    """Read a mask ``(H, W)``, uint8.

    Raises:
        ArgumentError: its values are no indices.
        OSError: it cannot be read.
    """
    with Image.open(path) as file:
        if file.mode not in _MODES:
            raise ArgumentError(
                "a mask has the index of a class for each pixel, as gray levels of 8 bits or with "
                f"a palette; this one has colours, or more bits (Pillow's mode {file.mode})"
            )
        return np.array(file, dtype=np.uint8)


def _usable(pairs: Sequence[Pair], num_classes: int, skip: bool) -> tuple[list[Pair], int]:
    """Return the pairs that can be used, and the number of the others."""
    objections = map_over_ranks(partial(_objection, num_classes=num_classes), pairs)
    good = [pair for pair, objection in zip(pairs, objections, strict=True) if not objection]
    bad = [objection for objection in objections if objection]
    if bad and not (skip and good):
        count = f" ({len(bad)} of {len(pairs)} pairs cannot be used)"
        raise ArgumentError(f"{bad[0]}{count}{'' if skip else f'. {_SKIP}'}")
    if dist.get_local_rank() == 0:
        for objection in bad:
            log.warning("left out: %s", objection)
    return good, len(bad)


def _objection(pair: Pair, num_classes: int) -> str:
    """Return why a pair cannot be used; empty if it can."""
    path, mask_path = pair
    try:
        with Image.open(path) as image:
            size = image.size
    except Exception as error:  # of any type: the file may contain anything
        return f"{path} cannot be read as an image: {first_line(error)}"
    try:
        mask = read_mask(mask_path)
    except Exception as error:
        return f"{mask_path} cannot be read as a mask: {first_line(error)}"
    if mask.shape != size[::-1]:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels, and its image {size[0]}x{size[1]}"
        return f"{mask_path} has {sizes}: they must be of one size"
    values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    unknown = [int(value) for value in values if num_classes <= value != IGNORED]
    if unknown:
        shown = first_few(list(map(str, unknown)))
        return (
            f"{mask_path} holds the unknown class {shown}: the {num_classes} classes are 0 to "
            f"{num_classes - 1}, and {IGNORED} is no class"
        )
    return ""
