"""A run from its YAML to its summary, in this process."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from composer_attn.errors import ConfigError, PatternError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.train import train, unused

CONFIG = """
run_name: small
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
eval_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 2ep
device: cpu
algorithms: {eca: {min_channels: 256}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads the config above with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def test_a_run_leaves_a_summary_its_config_and_checkpoints(config, tmp_path):
    summary = train(config())
    folder = tmp_path / "runs" / "small"
    assert summary == type(summary)(**json.loads((folder / "summary.json").read_text()))
    assert summary.attended_layers == 6
    assert summary.parameters_after - summary.parameters_before == 6 * 5
    assert set(summary.metrics) == {"accuracy", "cross_entropy", "top5_accuracy"}
    assert 0 <= summary.metrics["accuracy"] <= summary.metrics["top5_accuracy"] <= 1
    steady = summary.seconds - summary.startup_seconds  # without the first of four steps
    assert summary.images_per_second == pytest.approx(12 / steady, rel=1e-3)
    assert OmegaConf.load(folder / "config.yaml").algorithms == {"eca": {"min_channels": 256}}
    assert len(list(folder.glob("ep*.pt"))) == 2
    state = torch.load(folder / "latest-rank0.pt", weights_only=False)["state"]
    assert any("attention" in key for key in state["model"])


def test_the_same_seed_gives_the_same_metrics(config):
    assert train(config()).metrics == train(config()).metrics


def test_a_second_run_never_writes_into_the_first_ones_folder(config, tmp_path):
    first, second, third = (train(config("max_duration=1ba")).save_folder for _ in range(3))
    assert (first, second, third) == ("runs/small", "runs/small-2", "runs/small-3")
    assert all((tmp_path / folder / "summary.json").exists() for folder in (first, second, third))


def test_autoresume_goes_on_in_the_same_folder_to_the_same_end(config):
    whole = train(config("run_name=whole"))
    train(config("max_duration=1ep", "autoresume=true"))
    resumed = train(config("autoresume=true"))
    assert resumed.save_folder == "runs/small"
    assert resumed.metrics == whole.metrics


def test_without_evaluation_there_are_no_metrics(config):
    assert train(config("eval_dataset=null", "max_duration=1ba")).metrics == {}


def test_metrics_are_those_of_the_end_of_training(config):
    rare = train(config("eval_interval=10ep"))
    often = train(config("eval_interval=1ba"))
    assert rare.metrics == often.metrics


@pytest.mark.parametrize(
    ("override", "error", "says"),
    [
        ("algorithms.eca.include=nowhere.*", PatternError, "'nowhere.*' matches none"),
        ("save_folder=run.yaml/inside", ConfigError, "save_folder: cannot be written"),
        ("scheduler={name: multi_step, milestones: [x]}", ConfigError, "Composer refused the run"),
        ("load_path=absent.pt", ConfigError, "load_path: there is no file 'absent.pt'"),
    ],
)
def test_what_does_not_work_out_stops_before_training(config, tmp_path, override, error, says):
    with pytest.raises(error) as caught:
        train(config(override))
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["run.yaml"]


def test_unused_counts_on_from_the_last(tmp_path):
    folder = tmp_path / "run"
    assert unused(folder) == folder
    folder.mkdir()
    assert unused(folder) == folder
    (folder / "x").touch()
    assert unused(folder) == tmp_path / "run-2"
    (tmp_path / "run-9").mkdir()
    (tmp_path / "run-x").mkdir()
    assert unused(folder) == tmp_path / "run-10"


def test_a_run_that_had_come_to_its_end_is_evaluated_again(config):
    first = train(config("autoresume=true"))
    again = train(config("autoresume=true"))
    assert again.save_folder == first.save_folder
    assert again.metrics == first.metrics
    assert again.attended_layers == first.attended_layers == 6


def test_a_run_that_fails_in_its_first_step_leaves_no_folder(config, tmp_path):
    (tmp_path / "kept").mkdir()
    for folder in ("runs/deep/small", "kept"):
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            train(config("train_dataset.size=0", f"save_folder={folder}"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "run.yaml"]


# The published counts of sites, 31 and 68, less the two of their auxiliary classifiers.
@pytest.mark.parametrize(
    ("name", "side", "layers"), [("googlenet", 32, 29), ("inception_v3", 80, 66)]
)
def test_networks_with_auxiliary_classifiers_train_without_them(config, name, side, layers):
    summary = train(
        config(
            f"model.name={name}",
            f"train_dataset.size={side}",
            "algorithms.eca.min_channels=128",
            "eval_dataset=null",
            "max_duration=1ba",
        )
    )
    assert summary.attended_layers == layers
