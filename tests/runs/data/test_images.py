"""Batches of images: normalized alike, whatever they come as."""

import pytest
import torch

from composer_attn.runs.data.images import Normalize, collate

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalized_images_follow_the_formula(dtype, memory_format):
    numbers = torch.randint(0, 256, (2, 3, 5, 7)).to(dtype)
    images = numbers.contiguous(memory_format=memory_format)
    normalized = Normalize(MEAN, STD)(images)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(t, dtype=torch.float64).view(3, 1, 1) for t in (MEAN, STD))
    expected = (numbers.double() / 255 - mean) / std
    torch.testing.assert_close(normalized.double(), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(images, numbers)


def test_bytes_and_floats_give_the_same_bits():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    normalize = Normalize(MEAN, STD)
    assert torch.equal(normalize(images), normalize(images.float()))


def test_a_batch_holds_the_pixels_of_its_samples_in_their_order():
    images = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    samples = [(images[0], 7), None, (images[1], 2), (images[2], 7)]
    batch, labels = collate(samples)
    assert torch.equal(batch, images)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [7, 2, 7]
    assert labels.dtype == torch.int64
