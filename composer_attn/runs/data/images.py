"""Images on their way from a file to the network: augmented, batched as bytes, normalized late.

Batches travel as uint8 in channels-last memory, a quarter of the bytes of float32, in the layout
that images are decoded in and that convolutions are fastest in; they become normalized float32 only
on the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from composer_attn.errors import ArgumentError

# Of ImageNet's training images, in units of the brightest value; what torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
Augmentations by name: ``center_crop`` to evaluate (resize the shorter side, cut out the middle);
``resnet`` the usual training crop of random area and shape, flipped at random, which the
``*_augment`` and ``aug_mix`` policies go on from; ``resize_crop`` a crop at random of a resized
image; ``pad_crop`` CIFAR's, a crop of an image padded by an eighth.
"""


def build_transform(augmentation: str, size: int, resize: int) -> v2.Transform:
    """Build what makes a uint8 tensor ``(3, size, size)`` of a PIL image.

    Raises:
        ArgumentError: there is no such augmentation.
    """
    if augmentation not in AUGMENTATIONS:
        raise ArgumentError(
            f"augmentation must be one of {', '.join(AUGMENTATIONS)}; got {augmentation!r}"
        )
    return v2.Compose([*AUGMENTATIONS[augmentation](size, resize), v2.PILToTensor()])


def collate(samples: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor]:
    """Batch uint8 images in channels-last memory, leaving out ``None``, the skipped ones.

    Raises:
        ArgumentError: all were skipped.
    """
    found = [sample for sample in samples if sample is not None]
    if not found:
        raise ArgumentError(f"none of the {len(samples)} images of a batch can be read")
    images = torch.stack([image.permute(1, 2, 0) for image, _ in found]).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in found])


class Normalize:
    """Turn uint8 images ``(N, 3, H, W)`` into float32 of mean 0 and deviation 1, by channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean = torch.tensor(mean).view(1, -1, 1, 1) * 255
        self.std = torch.tensor(std).view(1, -1, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Keep the memory format; work on whatever device the images are.

        Images may be floats already, of the same range: MixUp mixes the bytes.
        """
        mean, std = (t.to(images.device, non_blocking=True) for t in (self.mean, self.std))
        return (images - mean).div_(std)  # the batch itself stays: SAM trains on it twice
