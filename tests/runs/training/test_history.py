"""What a run keeps of its losses and metrics, also across interruptions."""

import json
import os
import signal
from math import isnan

import pytest
import yaml
from composer import Callback

from composer_attn.errors import ConfigError, RunStoppedError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training import build
from composer_attn.runs.training.history import read_history
from composer_attn.runs.training.train import train
from tests.runs.training.test_train import CONFIG


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def batch_end(self, state, logger):
        self.seen.append(state.total_loss_dict["loss/train/total"])


def test_a_run_keeps_the_loss_of_each_epoch_and_each_evaluation(config, tmp_path, monkeypatch):
    losses = Losses()
    table = dict(build.CALLBACKS.table, lr_monitor=lambda: losses)
    monkeypatch.setattr(build, "CALLBACKS", type(build.CALLBACKS)("callback", table))
    summary = train(config("callbacks={lr_monitor: {}}"))
    history = read_history(tmp_path / "runs" / "small")
    assert [(m.kind, m.batch, m.epoch, m.sample) for m in history] == [
        ("train", 2, 1, 8),
        ("eval", 2, 1, 8),
        ("train", 4, 2, 16),
        ("eval", 4, 2, 16),
    ]
    assert [m.figures["loss"] for m in history if m.kind == "train"] == pytest.approx(
        [sum(losses.seen[:2]) / 2, sum(losses.seen[2:]) / 2]
    )
    assert history[-1].figures == pytest.approx(summary.metrics)
    assert 0 < history[0].seconds < history[2].seconds == summary.seconds


def test_a_run_that_ends_within_an_epoch_keeps_what_it_has(config, tmp_path):
    train(config("max_duration=3ba"))
    history = read_history(tmp_path / "runs" / "small")
    assert [(m.kind, m.batch, m.epoch) for m in history][-2:] == [("train", 3, 1), ("eval", 3, 1)]


def test_an_epoch_after_whose_last_batch_a_run_was_stopped_is_kept(config, tmp_path, monkeypatch):
    class StopsAtTheLast(Callback):
        def batch_end(self, state, logger):
            if state.timestamp.batch == 2:  # of an epoch of two
                os.kill(os.getpid(), signal.SIGTERM)

    def stopped(*overrides):
        table = dict(build.CALLBACKS.table, lr_monitor=StopsAtTheLast)
        with monkeypatch.context() as patch:
            patch.setattr(build, "CALLBACKS", type(build.CALLBACKS)("callback", table))
            with pytest.raises(RunStoppedError, match="after batch 2"):
                train(config(*overrides, "callbacks={lr_monitor: {}}"))

    stopped("save_folder=cut")
    train(config("save_folder=cut", "autoresume=true"))
    train(config("save_folder=whole"))
    cut, whole = (
        [(m.batch, m.epoch, m.figures) for m in read_history(tmp_path / name) if m.kind == "train"]
        for name in ("cut", "whole")
    )
    assert [moment[:2] for moment in cut] == [(2, 1), (4, 2)]
    assert cut == whole


def test_the_config_is_there_from_the_first_step_on(config, tmp_path, monkeypatch):
    class Ends(Callback):
        def batch_end(self, state, logger):
            if state.timestamp.batch == 2:
                raise KeyboardInterrupt

    table = dict(build.CALLBACKS.table, lr_monitor=Ends)
    monkeypatch.setattr(build, "CALLBACKS", type(build.CALLBACKS)("callback", table))
    with pytest.raises(KeyboardInterrupt):
        train(config("callbacks={lr_monitor: {}}"))
    folder = tmp_path / "runs" / "small"
    assert yaml.safe_load((folder / "config.yaml").read_text())["run_name"] == "small"
    assert not (folder / "summary.json").exists()


def test_what_was_trained_again_comes_once_and_no_number_is_nan(tmp_path):
    def line(kind, batch, **figures):
        counts = {"kind": kind, "batch": batch, "epoch": batch // 2, "sample": 0, "seconds": 1.0}
        return json.dumps(counts | {"figures": figures})

    lines = [
        line("train", 2, loss=2.0),
        line("eval", 2, accuracy=0.5),
        line("train", 4, loss=1.0),
        line("train", 4, loss=None),  # after an interruption
        line("eval", 4, accuracy=0.6),
        '{"kind": "train", "ba',
    ]
    (tmp_path / "history.jsonl").write_text("\n".join(lines))
    history = read_history(tmp_path)
    assert [(m.kind, m.batch) for m in history] == [
        ("train", 2), ("eval", 2), ("train", 4), ("eval", 4),
    ]  # fmt: skip
    assert isnan(history[2].figures["loss"])
    assert read_history(tmp_path / "absent") == []


def test_a_loss_that_is_nan_is_kept_as_such(config, tmp_path):
    train(config("optimizer.lr=1e30", "max_duration=2ep"))
    losses = [
        m.figures["loss"] for m in read_history(tmp_path / "runs" / "small") if m.kind == "train"
    ]
    assert isnan(losses[-1])


def test_the_monitor_goes_by_its_name_and_its_mistakes_are_found_early(config, tmp_path):
    summary = train(config("callbacks={excitation_monitor: {interval: 1ba}}"))
    assert summary.attended_layers == 6
    assert (tmp_path / "runs" / "small" / "excitations.npz").is_file()
    for wrong, says in (
        ("{interval: 1x}", "callbacks.excitation_monitor: interval must be a number of ba or ep"),
        ("{layer: x}", "callbacks.excitation_monitor.layer: unknown argument"),
    ):
        with pytest.raises(ConfigError, match=says):
            config(f"callbacks={{excitation_monitor: {wrong}}}")
