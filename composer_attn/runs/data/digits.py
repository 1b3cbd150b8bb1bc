"""Handwritten digits: 1,797 real images included in scikit-learn."""

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.source import Source

_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def digits(split: str, size: int = 32) -> Source:
    """Load a split of scikit-learn's handwritten digits, without downloading anything.

    The 8x8 images of the UCI "Optical Recognition of Handwritten Digits" test set, 0 to 9, resized
    bilinearly and repeated over three channels; a stratified split of four fifths for training and
    one fifth held out.

    Args:
        split: ``train`` (1,437 images) or ``test`` (360), the same in every process and run.
        size: height and width in pixels.

    Returns:
        Pairs of an image ``(3, size, size)``, float32 in [-1, 1], and its label.

    Raises:
        ArgumentError: there is no such split.
        ImportError: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ArgumentError(f"split of digits must be train or test; got {split!r}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: pip install 'composer-attn[demo]'") from (
            error
        )
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        pixels, labels, test_size=_TEST_SHARE, stratify=labels, random_state=_SPLIT_SEED
    )
    pixels, labels = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    dataset = TensorDataset(images, torch.as_tensor(labels, dtype=torch.long))
    return Source(dataset, num_classes=10, image_shape=(3, size, size), classes=tuple("0123456789"))
