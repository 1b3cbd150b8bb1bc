"""Batches of images: normalized alike, whatever they come as."""

import numpy as np
import pytest
import torch
from PIL import Image

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.images import Normalize, collate, to_rgb
from tests.pictures import write_png

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


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def png(path):
    return Image.open(write_png(path, RAMP))


def pgm(path):
    path.write_bytes(b"P5\n8 8\n65535\n" + RAMP.astype(">u2").tobytes())
    return Image.open(path)


def tiff(path):
    Image.fromarray(RAMP).save(path, "TIFF")
    return Image.open(path)


def big_endian(path):
    return Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())


def widened(path):
    """As older versions of Pillow open such a PNG."""
    image = Image.fromarray(RAMP.astype(np.int32))
    image.format = "PNG"
    return image


@pytest.mark.parametrize("make", [png, pgm, tiff, big_endian, widened])
def test_sixteen_bits_become_eight_by_their_brightness(make, tmp_path):
    image = to_rgb(make(tmp_path / "image"))
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == RAMP[..., None] // 256).all()
    assert len(np.unique(pixels)) == 64


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_several_channels_become_the_same(channels, tmp_path):
    pixels = np.stack([RAMP] * channels, -1)
    if channels in (2, 4):
        pixels[..., -1] = 65535  # opaque
    image = to_rgb(Image.open(write_png(tmp_path / "image", pixels)))
    assert (np.asarray(image) == RAMP[..., None] // 256).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA"])
def test_eight_bits_are_as_pillow_converts_them(mode):
    image = Image.fromarray((RAMP // 256).astype(np.uint8)).convert("RGB").convert(mode)
    assert (np.asarray(to_rgb(image)) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_numbers_without_a_brightest_one_are_refused(mode, dtype, tmp_path):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "image.tif")
    with pytest.raises(ArgumentError, match=rf"value is not known .*mode {mode}\): .* 8 or 16 b"):
        to_rgb(Image.open(tmp_path / "image.tif"))
