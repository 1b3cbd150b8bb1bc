"""Curves: smoothed, over seeds, and from the end of the first step on."""

import numpy as np
import pytest

from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.curve_plots import _Curve, _smoothed, curve_plots, smoothing_window
from composer_attn.runs.report.records import find_records
from composer_attn.runs.training.step_history import Step
from tests.runs.runs_on_disk import write_run


def drawn(folder):
    """Return the figures of all curves, by name."""
    return {
        name: (title, figure)
        for name, _, title, _, figure in curve_plots(compare(find_records([folder])))
    }


def lines(figure, label):
    return [line for line in figure.axes[0].get_lines() if line.get_label() == label]


def test_a_window_holds_the_images_before_each_point():
    images = np.array([10, 20, 30, 40])
    curve = _Curve(images, images / 10, np.array([4.0, 2.0, 0.0, 6.0]))
    # Each row is the mean of the ten images up to it.
    assert _smoothed(curve, 20).values == pytest.approx([4.0, 3.0, 1.0, 3.0])
    assert _smoothed(curve, 15).values == pytest.approx([4.0, (20 + 20) / 15, 10 / 15, 60 / 15])
    assert _smoothed(curve, 1000).values == pytest.approx([4.0, 3.0, 2.0, 3.0])
    assert smoothing_window([images, images * 100]) == 200


def test_few_images_are_shown_as_measured():
    images = np.array([4, 12])
    curve = _Curve(images, images / 10, np.array([4.0, 2.0]))
    assert smoothing_window([images]) == smoothing_window([]) == 1
    assert _smoothed(curve, 1).values == pytest.approx([4.0, 2.0])


def test_time_begins_after_the_first_step_has_built_what_it_needs(tmp_path):
    write_run(tmp_path / "plain", speed=100.0)
    write_run(tmp_path / "eca", "eca", speed=100.0, startup=25.0)
    figure = drawn(tmp_path)["accuracy_by_time"][1]
    assert figure.axes[0].get_xlabel() == "training time (seconds)"
    ends = [lines(figure, name)[0].get_xdata()[-1] for name in ("plain", "eca")]
    assert ends == pytest.approx([20.0, 20.0])


def test_seeds_are_a_mean_with_a_band(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.9, 0.94)):
        write_run(tmp_path / f"plain{seed}", None, seed, accuracy)
    title, figure = drawn(tmp_path)["accuracy_by_images"]
    assert "mean over seeds, band from the lowest to the highest" in title
    (line,) = lines(figure, "plain")
    assert line.get_ydata() == pytest.approx([44.0, 88.0])
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert {round(y, 6) for x, y in band if x == 2.0} == {80.0, 94.0}


def test_seeds_that_went_differently_far_are_lines_of_their_own(tmp_path):
    write_run(tmp_path / "one", None, 0, 0.8)
    write_run(tmp_path / "two", None, 1, 0.9, losses=(2.0, 1.0, 0.5))
    title, figure = drawn(tmp_path)["accuracy_by_images"]
    assert "band" not in title
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [2, 3]


def test_the_error_has_a_logarithmic_axis(tmp_path):
    write_run(tmp_path / "plain", accuracy=0.99)
    write_run(tmp_path / "eca", "eca", accuracy=1.0)
    figure = drawn(tmp_path)["accuracy_error_by_images"][1]
    assert figure.axes[0].get_yscale() == "log"
    assert lines(figure, "plain")[0].get_ydata() == pytest.approx([50.5, 1.0])


def test_running_training_accuracy_stands_beside_evaluations(tmp_path):
    steps = [Step(i, 100 * i, i / 2, 2.0 / i, 0.5 + i / 50) for i in range(1, 21)]
    write_run(tmp_path / "plain", steps=steps)
    found = drawn(tmp_path)
    assert {"training_accuracy_by_images", "training_accuracy_by_time", "loss_by_time"} <= set(
        found
    )
    title, figure = found["training_accuracy_by_images"]
    assert "smoothed over 100 images, faintly as measured" in title
    faint, smooth = figure.axes[0].get_lines()
    assert faint.get_alpha() == 0.2
    assert faint.get_ydata() == pytest.approx([50 + 2 * i for i in range(1, 21)])
    assert smooth.get_ydata() == pytest.approx(faint.get_ydata())  # the window is one row
    assert found["training_accuracy_by_time"][1].axes[0].get_lines()[1].get_xdata()[-1] == 10.0
    assert found["loss_by_images"][0].startswith("Running training loss")


def test_runs_without_steps_have_the_loss_of_epochs(tmp_path):
    write_run(tmp_path / "plain", steps=[Step(1, 100, 1.0, 2.0, 0.5)])
    write_run(tmp_path / "eca", "eca")
    found = drawn(tmp_path)
    assert found["loss_by_images"][0].startswith("Training loss per epoch")
    assert "training_accuracy_by_images" in found
