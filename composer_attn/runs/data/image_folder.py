"""Folders of images, one folder a class: the layout of ImageNet."""

import logging
import multiprocessing

import torchvision
from PIL import UnidentifiedImageError

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    build_transform,
    collate,
)
from composer_attn.runs.data.source import Source

log = logging.getLogger(__name__)


class _Images(torchvision.datasets.ImageFolder):
    """An ImageFolder that knows what to do about a file that is no image."""

    def __init__(self, root: str, transform, skip: bool):
        super().__init__(root, transform)
        self._skip = skip
        self._skipped = multiprocessing.Value("q", 0)  # shared with the worker processes

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        try:
            image = self.loader(path)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            if not self._skip:
                raise ArgumentError(f"{path} cannot be read as an image: {error}") from error
            with self._skipped.get_lock():
                self._skipped.value += 1
            log.warning("skipped %s: %s", path, error)
            return None
        return self.transform(image), label

    def skipped(self) -> int:
        """Return how often a file was skipped, in all processes of this rank."""
        return self._skipped.value


def image_folder(
    root: str,
    augmentation: str,
    size: int = 224,
    resize: int = 256,
    on_bad_image: str = "error",
) -> Source:
    """Read images from ``root/<class>/*``, the classes in the order of their names.

    Args:
        root: the folder of one split, like ``/data/imagenet/train``.
        augmentation: one of :data:`~composer_attn.runs.data.images.AUGMENTATIONS`.
        size: height and width, in pixels, of what the network sees.
        resize: what the shorter side becomes first, under ``center_crop`` and ``resize_crop``.
        on_bad_image: ``error``, or ``skip`` to leave out files that are no images, and count them.

    Raises:
        ArgumentError: fewer than two classes, or an argument that is not valid.
        FileNotFoundError: no such folder, or one without images.
    """
    if on_bad_image not in ("error", "skip"):
        raise ArgumentError(f"on_bad_image must be error or skip; got {on_bad_image!r}")
    dataset = _Images(root, build_transform(augmentation, size, resize), on_bad_image == "skip")
    if len(dataset.classes) < 2:
        raise ArgumentError(f"{root} holds one class only: {dataset.classes[0]!r}")
    return Source(
        dataset,
        num_classes=len(dataset.classes),
        image_shape=(3, size, size),
        classes=tuple(dataset.classes),
        collate=collate,
        device_transform=Normalize(IMAGENET_MEAN, IMAGENET_STD),
        random=augmentation != "center_crop",
        skipped=dataset.skipped,
    )
