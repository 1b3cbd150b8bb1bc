"""The picture of a study is put together from its plots, with their titles."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.study_picture import draw


def plot(colour: str) -> Figure:
    figure = Figure(figsize=(5.2, 3.5), layout="constrained")
    figure.add_subplot().set_facecolor(colour)
    return figure


def test_plots_are_in_reading_order(tmp_path):
    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    draw([(name, plot(name)) for name in colours], tmp_path / "study.png")
    with Image.open(tmp_path / "study.png") as picture:
        found = np.asarray(picture.convert("RGB"))
    half = np.array(found.shape[:2]) // 2
    for place, colour in enumerate(colours.values()):
        rows, columns = np.nonzero((found == colour).all(2))
        assert [rows.mean() > half[0], columns.mean() > half[1]] == [place // 2, place % 2]
    assert (found[:2] == 255).all()  # on white, also on a dark page
