"""Fixed random images, to measure throughput and to test recipes without their data."""

import torch
from torch.utils.data import TensorDataset

from composer_attn.runs.data.source import Source


def synthetic(
    num_samples: int = 1024,
    num_classes: int = 1000,
    size: int = 224,
    channels: int = 3,
    seed: int = 0,
) -> Source:
    """Generate normally distributed images ``(channels, size, size)`` with uniform labels.

    Args:
        num_samples: number of images.
        num_classes: labels are 0 to ``num_classes - 1``.
        size: height and width in pixels.
        channels: number of channels.
        seed: seed of the images, which are the same in every process.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, channels, size, size, generator=generator)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    return Source(TensorDataset(images, labels), num_classes, (channels, size, size))
