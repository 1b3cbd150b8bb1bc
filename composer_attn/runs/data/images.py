"""The path of images from file to network: augmentation, batches of bytes, late normalization.

Batches are transferred as uint8 in channels-last memory: a quarter of the bytes of float32, in the
layout in which images are decoded and convolutions are fastest. They are converted to normalized
float32 only on the device.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError

# Of ImageNet's training images, with values from 0 to 1, as torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Formats whose 16-bit images with one channel are opened with 32 bits by some versions of Pillow.
_SIXTEEN_BITS = ("PNG", "PPM")


def _center_crop(size: int, resize: int) -> list[v2.Transform]:
    return [v2.Resize(resize), v2.CenterCrop(size)]


def _resnet(size: int, resize: int) -> list[v2.Transform]:
    return [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]


def _resize_crop(size: int, resize: int) -> list[v2.Transform]:
    return [v2.Resize(resize), v2.RandomCrop(size), v2.RandomHorizontalFlip()]


def _pad_crop(size: int, resize: int) -> list[v2.Transform]:
    return [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()]


def _then(transform: type[v2.Transform]) -> Callable[[int, int], list[v2.Transform]]:
    return lambda size, resize: [*_resnet(size, resize), transform()]


AUGMENTATIONS: dict[str, Callable[[int, int], list[v2.Transform]]] = {
    "aug_mix": _then(v2.AugMix),
    "auto_augment": _then(v2.AutoAugment),
    "center_crop": _center_crop,
    "pad_crop": _pad_crop,
    "rand_augment": _then(v2.RandAugment),
    "resize_crop": _resize_crop,
    "resnet": _resnet,
    "trivial_augment": _then(v2.TrivialAugmentWide),
}
"""
Augmentations by name: ``center_crop`` for evaluation (resize the shorter side, crop the centre);
``resnet``, the usual training crop of random area and aspect ratio with a random flip, to which
``*_augment`` and ``aug_mix`` add their policies; ``resize_crop``, a random crop of a resized image;
``pad_crop``, CIFAR's random crop of an image padded by an eighth.
"""


def build_transform(augmentation: str, size: int, resize: int) -> v2.Transform:
    """Build a transform from a PIL image to a uint8 tensor ``(3, size, size)``.

    Raises:
        ArgumentError: there is no such augmentation, or its crop is larger than the image.
    """
    if augmentation not in AUGMENTATIONS:
        raise ArgumentError(
            f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {augmentation!r}"
        )
    if augmentation in ("center_crop", "resize_crop") and size > resize:
        raise ArgumentError(
            f"size must be at most resize={resize} under {augmentation}; got {size}"
        )
    return v2.Compose([*AUGMENTATIONS[augmentation](size, resize), v2.PILToTensor()])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel.

    Of 16 bits the upper 8 are used, as Pillow does for three channels; for a single channel Pillow
    would clip all values above 255, which leaves white.

    Raises:
        ArgumentError: the range of its values is unknown.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ArgumentError(
            f"its largest possible value is not known (Pillow's mode {image.mode}): save it with "
            "8 or 16 bits"
        )
    return image.convert("RGB")


def collate(samples: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor]:
    """Batch uint8 images in channels-last memory, leaving out skipped ones (``None``).

    Raises:
        ArgumentError: all were skipped.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise ArgumentError(f"none of the {len(samples)} images of a batch can be read")
    # In a worker, PyTorch's collation writes directly to memory shared with the main process.
    images, labels = default_collate([(image.permute(1, 2, 0), label) for image, label in found])
    return images.permute(0, 3, 1, 2), labels


class Normalize:
    """Convert uint8 images ``(N, 3, H, W)`` to float32, with mean 0 and std 1 by channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean = torch.tensor(mean) * 255
        self.std = torch.tensor(std) * 255

    @classmethod
    def by(cls, mean: list | None, std: list | None) -> "Normalize":
        """Normalize by means and stds of values from 0 to 1, by default ImageNet's.

        Raises:
            ArgumentError: they are not three numbers from 0 to 1 each.
        """
        found: list[tuple[float, ...]] = []
        for name, given, default in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
            numbers = tuple(default if given is None else given)
            smallest = 0 if name == "mean" else 1e-6
            if len(numbers) != 3 or not all(
                is_real(number) and smallest <= number <= 1 for number in numbers
            ):
                raise ArgumentError(
                    f"{name} must be three numbers from 0 to 1, for red, green and blue, in units "
                    f"of the brightest value; got {given!r}"
                )
            found.append(numbers)
        return cls(*found)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize images on their device, to channels-last memory.

        Images may also be floats in the same range, since MixUp mixes the bytes.
        """
        # Rows of pixels, (N, H, W * 3): on a CPU, broadcasting over an innermost dimension of
        # three channels takes twice as long.
        rows = images.permute(0, 2, 3, 1).flatten(2)
        mean, std = (
            t.repeat(images.shape[3]).to(images.device, non_blocking=True)
            for t in (self.mean, self.std)
        )
        of_bytes = images.is_cpu and images.dtype == torch.uint8
        rows = (_standardize_bytes if of_bytes else _standardize)(rows, mean, std)
        return rows.unflatten(2, (images.shape[3], -1)).permute(0, 3, 1, 2)


def _standardize(rows: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    # Always a copy: SAM trains on the same batch twice, so it must not change.
    return rows.to(torch.float32, copy=True).sub_(mean).div_(std)


def _standardize_bytes(rows: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute the same on a CPU, in a single thread.

    PyTorch's thread pool spins between operations, on cores that the loader's workers need: on two
    cores it takes 0.5 ms per image of 224x224 instead of 0.2, while a worker takes 2.4.
    """
    floats = np.subtract(rows.numpy(), mean.numpy(), dtype=np.float32)
    return torch.from_numpy(np.divide(floats, std.numpy(), out=floats))
