"""CIFAR-10 and CIFAR-100, from torchvision's files."""

from collections.abc import Callable

import torchvision
from composer.utils import dist
from torchvision.transforms import v2

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import AUGMENTATIONS, Normalize, build_transform, collate
from composer_attn.runs.data.source import Source

# Of the training images, with values from 0 to 1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
SIZE = 32


def cifar10(
    root: str, split: str, augmentation: str | None = None, download: bool = False
) -> Source:
    """Read CIFAR-10: 32x32 images of 10 classes, 50,000 for training and 10,000 held out.

    Args:
        root: the folder that contains ``cifar-10-batches-py``.
        split: ``train`` or ``test``.
        augmentation: one of :data:`~composer_attn.runs.data.images.AUGMENTATIONS`; by default
            ``pad_crop`` for training and none for testing.
        download: whether to download the files if they are missing.

    Raises:
        ArgumentError: an argument is invalid.
        FileNotFoundError: the files are missing or corrupt.
    """
    return _cifar(torchvision.datasets.CIFAR10, root, split, augmentation, download)


def cifar100(
    root: str, split: str, augmentation: str | None = None, download: bool = False
) -> Source:
    """Read CIFAR-100: like :func:`cifar10`, with 100 classes, in ``cifar-100-python``."""
    return _cifar(torchvision.datasets.CIFAR100, root, split, augmentation, download)


def _cifar(
    dataset: Callable, root: str, split: str, augmentation: str | None, download: bool
) -> Source:
    if split not in ("train", "test"):
        raise ArgumentError(f"split must be train or test; got {split!r}")
    augmentation = augmentation or ("pad_crop" if split == "train" else None)
    transform = build_transform(augmentation, SIZE, SIZE) if augmentation else v2.PILToTensor()
    try:
        with dist.run_local_rank_zero_first():
            images = dataset(root, split == "train", transform, download=download)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{root} does not hold {dataset.__name__}, complete and unmodified; download: true "
            "downloads it"
        ) from error
    return Source(
        images,
        num_classes=len(images.classes),
        image_shape=(3, SIZE, SIZE),
        classes=tuple(images.classes),
        collate=collate,
        device_transform=Normalize(MEAN, STD),
        random=augmentation in set(AUGMENTATIONS) - {"center_crop"},
    )
