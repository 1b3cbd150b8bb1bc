"""The picture of heat maps is drawn from views, whatever they are of."""

import numpy as np
from PIL import Image

from benchmarks.heat_maps import NAMES, draw
from composer_attn.runs.heatmaps.views import View


def test_it_is_drawn(tmp_path):
    pixels, heat = np.full((8, 8, 3), 90, dtype=np.uint8), np.eye(8)
    views = [View("", pixels, heat, str(digit), digit, 0.9, "layer4") for digit in range(3)]
    draw(["0", "1", "7"], dict.fromkeys(NAMES.values(), views), tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as picture:
        found = np.asarray(picture.convert("RGB")).astype(int)
    assert found.shape[1] > found.shape[0] / 2
    assert (np.ptp(found, axis=2) > 60).mean() > 0.01  # of colours, on an image in grey
