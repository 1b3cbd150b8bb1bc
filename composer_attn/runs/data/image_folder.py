"""Folders of images, one per class: the layout of ImageNet."""

import logging
import multiprocessing
import warnings
from collections import Counter
from pathlib import Path

import torchvision
from composer.utils import dist
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from composer_attn.errors import ArgumentError, first_few
from composer_attn.runs.data.images import (
    Normalize,
    build_transform,
    collate,
    to_rgb,
)
from composer_attn.runs.data.source import Source

log = logging.getLogger(__name__)


class _Images(torchvision.datasets.ImageFolder):
    """An ImageFolder that can skip and count files that are not images."""

    def __init__(self, root: str, transform, skip: bool):
        self._skip = skip
        self._skipped = multiprocessing.Value("q", 0)  # shared with the worker processes
        self.passed_over: Counter[str] = Counter()
        try:
            super().__init__(root, transform, loader=_read, is_valid_file=self._is_image)
        except FileNotFoundError as error:
            if not self.passed_over:
                raise
            raise FileNotFoundError(f"{error}{_listed(root, self.passed_over)}") from error

    def _is_image(self, path: str) -> bool:
        """Return whether a file has an image's extension; count the others."""
        found = path.lower().endswith(IMG_EXTENSIONS)
        if not found:
            self.passed_over[Path(path).suffix.lower() or Path(path).name] += 1
        return found

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        try:
            image = self.loader(path)
        except Exception as error:  # of any type: the file may contain anything
            if not self._skip:
                raise ArgumentError(
                    f"{path} cannot be read as an image: {error}. on_bad_image: skip leaves such "
                    "files out, and counts them"
                ) from error
            with self._skipped.get_lock():
                self._skipped.value += 1
            log.warning("skipped %s: %s", path, error)
            return None
        return self.transform(image), label

    def skipped(self) -> int:
        """Return the number of times that a file was skipped, in all processes of this rank."""
        return self._skipped.value


def image_folder(
    root: str,
    augmentation: str,
    size: int = 224,
    resize: int = 256,
    on_bad_image: str = "error",
    mean: list | None = None,
    std: list | None = None,
) -> Source:
    """Read images from ``root/<class>/*``, with classes sorted by name.

    Args:
        root: the folder of one split, such as ``/data/imagenet/train``.
        augmentation: one of :data:`~composer_attn.runs.data.images.AUGMENTATIONS`.
        size: height and width of the network's input, in pixels.
        resize: length to which the shorter side is resized before ``center_crop`` and
            ``resize_crop``, in pixels.
        on_bad_image: ``error``, or ``skip`` to leave out files that are not images, and count them.
        mean: means of red, green and blue for normalization, with values from 0 to 1; ImageNet's
            by default.
        std: standard deviations for normalization; ImageNet's by default.

    Raises:
        ArgumentError: there are fewer than two classes, or an argument is invalid.
        FileNotFoundError: there is no such folder, or it has no images.

    Warns:
        UserWarning: there are files with other extensions, which are ignored.
    """
    if on_bad_image not in ("error", "skip"):
        raise ArgumentError(f"on_bad_image must be error or skip; got {on_bad_image!r}")
    normalize = Normalize.by(mean, std)
    dataset = _Images(root, build_transform(augmentation, size, resize), on_bad_image == "skip")
    if len(dataset.classes) < 2:
        raise ArgumentError(f"{root} holds one class only: {dataset.classes[0]!r}")
    if dataset.passed_over and dist.get_local_rank() == 0:
        warnings.warn(_listed(root, dataset.passed_over), stacklevel=2)
    return Source(
        dataset,
        num_classes=len(dataset.classes),
        image_shape=(3, size, size),
        classes=tuple(dataset.classes),
        collate=collate,
        device_transform=normalize,
        random=augmentation != "center_crop",
        passed_over=dict(dataset.passed_over),
        skipped=dataset.skipped,
    )


def _read(path: str) -> Image.Image:
    with Image.open(path) as image:
        return to_rgb(image)


def _listed(root: str, passed_over: Counter[str]) -> str:
    """Describe how many files were passed over, by extension."""
    most_first = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    endings = [f"{ending} ({count:,})" for ending, count in most_first]
    return (
        f"ignored {passed_over.total():,} files in {root} that end in "
        f"{first_few(endings, number=5)}; images must end in {', '.join(IMG_EXTENSIONS)}"
    )
