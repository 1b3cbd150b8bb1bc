"""Streams of images: what the shards hold becomes pixels as from a folder."""

import numpy as np
import torch
from PIL import Image
from streaming import MDSWriter

from composer_attn.runs.data import build_loader
from composer_attn.runs.data.mds import mds


def test_images_of_sixteen_bits_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    with MDSWriter(out=str(tmp_path), columns={"x": "png", "y": "int"}) as out:
        for label in range(2):
            out.write({"x": Image.fromarray(ramp), "y": label})
    source = mds(str(tmp_path), "center_crop", num_classes=2, size=8, resize=8)
    loader = build_loader(source, 2, train=False, seed=0)
    images, labels = next(iter(loader.dataloader))
    assert labels.tolist() == [0, 1]
    expected = torch.from_numpy(ramp // 256).to(torch.uint8)
    assert torch.equal(images, expected.expand(2, 3, 8, 8))
