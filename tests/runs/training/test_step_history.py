"""The loss and accuracy of training steps, as a run writes them."""

import pytest

from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training import step_history
from composer_attn.runs.training.history import read_history
from composer_attn.runs.training.predictions import read_predictions
from composer_attn.runs.training.step_history import read_steps
from composer_attn.runs.training.train import train
from tests.runs.training.test_train import CONFIG


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def test_a_run_keeps_its_steps_and_the_time_of_the_first(config, tmp_path):
    summary = train(config())
    folder = tmp_path / "runs" / "small"
    steps, history = read_steps(folder), read_history(folder)
    assert [(step.batch, step.sample) for step in steps] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert all(step.accuracy in (0, 0.25, 0.5, 0.75, 1) for step in steps)
    epoch = [moment.figures["loss"] for moment in history if moment.kind == "train"]
    assert epoch[0] == pytest.approx((steps[0].loss + steps[1].loss) / 2, rel=1e-5)
    # Of the first step, which builds or compiles, the time is not counted.
    assert steps[0].seconds == pytest.approx(0, abs=1e-6)
    assert history[-1].startup == summary.startup_seconds > 0
    assert history[-1].steady_seconds == pytest.approx(steps[-1].seconds, rel=1e-4)
    later = summary.seconds - summary.startup_seconds
    assert summary.images_per_second == pytest.approx(12 / later, rel=1e-3)
    low, median, high = summary.step_seconds
    assert low <= median <= high
    assert (summary.device is not None, summary.precision) == (True, "fp32")
    found = read_predictions(folder)
    assert found.right.mean() == pytest.approx(summary.metrics["accuracy"])


def test_a_run_that_goes_on_adds_its_own_first_step(config, tmp_path):
    train(config("max_duration=1ep", "save_folder=cut"))
    first = read_history(tmp_path / "cut")[-1].startup
    summary = train(config("save_folder=cut", "autoresume=true"))
    assert summary.startup_seconds > first > 0
    assert [step.batch for step in read_steps(tmp_path / "cut")] == [1, 2, 3, 4]
    again = train(config("save_folder=cut", "autoresume=true"))  # nothing is left to train
    assert again.startup_seconds == summary.startup_seconds


def test_of_long_epochs_rows_are_means(config, tmp_path, monkeypatch):
    monkeypatch.setattr(step_history, "_ROWS", 1)
    train(config())
    folder = tmp_path / "runs" / "small"
    losses = [m.figures["loss"] for m in read_history(folder) if m.kind == "train"]
    steps = read_steps(folder)
    assert [step.batch for step in steps] == [2, 4]
    assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-5)


def test_what_was_trained_again_comes_once(tmp_path):
    lines = ["batch,sample,seconds,loss,accuracy", "1,4,0,2.0,0.5", "2,8,1,1.5,nan", "3,12,2,1,1",
             "2,8,1.5,1.25,0.75", "3,12"]  # fmt: skip
    (tmp_path / step_history.FILE).write_text("\n".join(lines))
    steps = read_steps(tmp_path)
    assert [(step.batch, step.loss) for step in steps] == [(1, 2.0), (2, 1.25)]
    assert read_steps(tmp_path / "absent") == []
