"""`composer-attn heatmaps`: what is written and printed, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from composer_attn import heat_maps, load_run
from composer_attn.runs.heatmaps.drawing import draw, overlay
from composer_attn.runs.heatmaps.of_files import write_heat_maps
from composer_attn.runs.heatmaps.views import View, pixels_of, views_of
from composer_attn.runs.inference.predict import predict, prepare
from tests.commands import invoke


@pytest.fixture
def photos(tmp_path, digit_files):
    """Four images: two in folders named after their classes, two with one name."""
    for index, name in enumerate(("0/a.png", "7/b.png", "c.png", "other/c.png")):
        target = tmp_path / "photos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digit_files[index], target)
    Image.open(digit_files[4]).save(tmp_path / "photos" / "c.bmp")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_a_picture_is_written_for_each_image_with_what_each_run_predicts(pair, photos, tmp_path):
    out = tmp_path / "out"
    pictures = write_heat_maps(pair, photos, out)
    names = ["0/a.png", "7/b.png", "c.bmp.png", "c.png.png", "other/c.png"]
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == names
    assert [str(picture.file.relative_to(out)) for picture in pictures] == names
    assert [picture.label for picture in pictures] == ["0", "7", None, None, None]
    for column, (folder, name) in enumerate(zip(pair, ("plain", "tiny"), strict=True)):
        expected = predict(load_run(folder), [picture.image for picture in pictures], top=1)
        for picture, prediction in zip(pictures, expected, strict=True):
            view, guess = picture.views[column], prediction.guesses[0]
            assert (view.run, view.prediction, view.index) == (name, guess.name, guess.index)
            assert view.probability == pytest.approx(guess.probability, abs=1e-6)
    for picture in pictures:
        with Image.open(picture.file) as image:
            assert image.width == 1040
            assert np.asarray(image.convert("L")).std() > 10


def test_views_hold_the_maps_of_the_predicted_classes(pair, digit_files):
    run = load_run(pair[1])
    batch = torch.stack([prepare(file, run.preprocessing) for file in digit_files[:3]])
    expected = heat_maps(run.network, batch, layer="layer1")
    for index, view in enumerate(views_of(run, "tiny", batch, "layer1")):
        assert view.layer == "layer1"
        np.testing.assert_allclose(view.heat, expected.maps[index], rtol=0, atol=1e-6)
        with Image.open(digit_files[index]) as image:
            pixels = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(view.pixels, pixels)
        assert view.index == int(expected.predictions[index])


def test_pixels_are_those_of_the_image_whatever_the_normalization(pair):
    preprocessing = load_run(pair[0]).preprocessing
    white, black = (torch.full((1, 3, 2, 2), value) for value in (1.0, -1.0))
    assert pixels_of(white, preprocessing).min() == 255
    assert pixels_of(black, preprocessing).max() == 0


def test_colours_lie_where_the_heat_is():
    pixels = np.full((4, 4, 3), (200, 100, 50), dtype=np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 0] = 1
    found = overlay(pixels, heat).astype(int)
    cold, hot = found[3, 3], found[0, 0]
    assert cold.tolist() == [124] * 3  # the luminance of the colour, by ITU-R 601
    assert hot[0] - hot[2] > 80
    assert (found[1:] == cold).all()


def view(run: str, prediction: str) -> View:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    return View(run, pixels, np.zeros((8, 8)), prediction, 0, 0.5, "layer4")


def test_wrong_predictions_are_marked_and_many_runs_go_into_rows():
    views = [view(f"run {index}", "cat" if index % 2 else "dog") for index in range(5)]
    figure = draw(views, "cat")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", *(f"run {index}" for index in range(5))]
    below = [axes.get_xlabel() for axes in figure.axes]
    assert below[0] == "label:\ncat"
    assert [text.startswith("\N{BALLOT X} dog") for text in below[1:]] == [True, False] * 2 + [True]
    assert all(text.endswith("50.0%") for text in below[1:])
    places = {round(axes.get_position().y0, 2) for axes in figure.axes}
    assert len(places) == 2
    named = draw([view("a_long_name_of_a_run_that_has_to_be_wrapped", "golden retriever")], "cat")
    named.draw_without_rendering()
    texts = [text for axes in named.axes for text in (axes.title, axes.xaxis.label)]
    for box in (text.get_window_extent() for text in texts):
        assert named.bbox.x0 <= box.x0 < box.x1 <= named.bbox.x1
        assert named.bbox.y0 <= box.y0 < box.y1 <= named.bbox.y1
    unknown = draw(views, None)
    assert "\N{BALLOT X}" not in "".join(axes.get_xlabel() for axes in unknown.axes)


def test_what_is_printed_is_a_line_for_each_image_or_json(pair, photos, tmp_path, capfd):
    runs = [str(folder) for folder in pair]
    out = tmp_path / "out"
    options = ["--images", str(photos / "0"), "--output", str(out), "--layer", "layer1"]
    assert invoke("heatmaps", *runs, *options) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith(f"{out / 'a.png'}: plain: ")
    assert ", tiny: " in printed.out
    assert printed.out.count("\n") == 1
    assert invoke("heatmaps", *runs, *options, "--json") == 0
    (document,) = json.loads(capfd.readouterr().out)
    assert document["file"] == str(out / "a.png")
    assert document["image"] == str(photos / "0" / "a.png")
    assert document["label"] == "0"
    assert [run["run"] for run in document["runs"]] == ["plain", "tiny"]
    assert {run["layer"] for run in document["runs"]} == {"layer1"}


def test_pictures_of_an_earlier_call_are_not_taken_for_images(pair, photos):
    first = write_heat_maps(pair[:1], photos, photos / "maps")
    again = write_heat_maps(pair[:1], photos, photos / "maps")
    assert [picture.image for picture in again] == [picture.image for picture in first]


def test_runs_of_one_name_are_distinguished_by_their_folders(pair, digit_files, tmp_path):
    pictures = write_heat_maps([pair[0], pair[0]], digit_files[0], tmp_path / "out")
    assert [view.run for view in pictures[0].views] == [str(pair[0])] * 2


def test_what_cannot_be_drawn_is_one_line_and_writes_nothing(pair, photos, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG")
    shutil.copy(photos / "c.png", tmp_path / "broken" / "b.png")
    (tmp_path / "file").touch()
    run, out = str(pair[0]), tmp_path / "out"
    for arguments, code, words in (
        ([run, "--images", tmp_path / "nowhere"], 2, "there is no folder or file"),
        ([run, "--images", tmp_path / "empty"], 2, "empty holds no file that ends in"),
        ([run, "--images", tmp_path / "broken"], 2, "a.png cannot be read as an image"),
        ([run, "--images", photos, "--layer", "layr4"], 2, "did you mean 'layer4'?"),
        ([run, "--images", photos, "--layer", "fc"], 2, "not a feature map (N, C, H, W)"),
        ([run, tmp_path / "empty", "--images", photos], 2, "is not a run: it holds no config.yaml"),
        ([run, "--images", photos / "c.png", "--out", photos], 2, "would overwrite the image"),
        ([run, "--images", photos, "--out", photos], 2, "would overwrite the image"),
        ([run, "--images", photos, "--out", tmp_path / "file"], 74, "cannot be written"),
    ):
        before = sorted(tmp_path.rglob("*"))
        given = [*map(str, arguments)]
        assert (
            invoke("heatmaps", *given, *([] if "--out" in given else ["--out", str(out)])) == code
        )
        printed = capfd.readouterr()
        assert printed.err.startswith("composer-attn: "), arguments
        assert words in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
        assert sorted(tmp_path.rglob("*")) == before
