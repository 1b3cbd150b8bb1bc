"""What a config may write shorter, and what null removes of the files it builds on."""

import pytest
from omegaconf import OmegaConf

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.planning.network_plan import make_plan
from composer_attn.runs.training.build import build_parts

BASE = """
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
batch_size: 4
device: cpu
algorithms:
  squeeze_excite: {latent_channels: 16}
  label_smoothing: {smoothing: 0.2}
callbacks: {lr_monitor: {}}
loggers: {file: {}}
"""
BASE_DATASET = {"name": "synthetic", "num_samples": 8, "num_classes": 10, "size": 32}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads a file that builds on the one above, with overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)

    def load(text: str = "", *overrides: str):
        (tmp_path / "run.yaml").write_text(f"base: base.yaml\n{text}")
        return load_checked("run.yaml", list(overrides))

    return load


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("algorithms: {squeeze_excite: null}", None),
        ("algorithms:\n  squeeze_excite:\n", None),
        ("algorithms: {squeeze_excite: ~}", None),
        ("", "algorithms.squeeze_excite=null"),
        ("algorithms: {squeeze_excite: {latent_channels: 8}}", "algorithms.squeeze_excite=null"),
    ],
)
def test_null_takes_out_what_a_file_below_adds(config, text, override):
    loaded = config(text, *([override] if override else []))
    assert loaded.algorithms == {"label_smoothing": {"smoothing": 0.2}}
    assert [type(a).__name__ for a in build_parts(loaded).algorithms] == ["LabelSmoothing"]
    saved = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(loaded)))
    assert list(saved.algorithms) == ["label_smoothing"]


def test_what_was_removed_may_be_added_again(config):
    loaded = config("algorithms: {squeeze_excite: null}", "algorithms.squeeze_excite.bias=true")
    assert loaded.algorithms["squeeze_excite"] == {"bias": True}


def test_null_takes_out_callbacks_and_loggers_too_and_a_whole_section(config):
    loaded = config("callbacks: {lr_monitor: null}\nloggers: {file: null}\nalgorithms: null")
    assert (loaded.callbacks, loaded.loggers, loaded.algorithms) == ({}, {}, {})
    assert config("algorithms: null", "algorithms.eca={}").algorithms == {"eca": {}}


@pytest.mark.parametrize(
    ("text", "override", "line"),
    [
        (
            "algorithms: {eca: null}",
            None,
            "run.yaml: algorithms.eca: null removes what a base file has, which is "
            "squeeze_excite, label_smoothing; for the defaults write {}",
        ),
        ("callbacks: {ema: null}", None, "run.yaml: callbacks.ema: null removes what a base file"),
        ("", "loggers.wandb=null", "command line: loggers.wandb: null removes"),
        ("algorithms: {eca: '${scheduler}'}", None, "run.yaml: algorithms.eca: null removes"),
    ],
)
def test_null_is_not_short_for_the_defaults(config, text, override, line):
    with pytest.raises(ConfigError) as caught:
        config(text, *([override] if override else []))
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


def test_a_sections_name_alone_stands_for_it(config):
    loaded = config("model: resnet18\ntrain_dataset: synthetic\nscheduler: constant")
    assert loaded.model == {"name": "resnet18"}  # another name: the base's section is gone
    assert loaded.train_dataset == BASE_DATASET
    assert loaded.scheduler == {"name": "constant"}


def test_a_name_on_the_command_line_leaves_the_rest_of_the_section(config):
    assert config("", "model=resnet18").model == {"name": "resnet18", "num_classes": 10}
    assert config("", "optimizer=sgd").optimizer == {"name": "sgd", "lr": 0.1, "momentum": 0.9}


def test_a_section_may_still_stand_for_another(config, tmp_path, monkeypatch):
    (tmp_path / "whole.yaml").write_text(f"{BASE}eval_dataset: ${{train_dataset}}\n")
    assert load_checked("whole.yaml").eval_dataset == BASE_DATASET
    monkeypatch.setenv("MODEL", "resnet18")
    assert config("model: {name: '${oc.env:MODEL}'}").model == {"name": "resnet18"}


def test_an_unknown_short_name_is_located_where_it_stands(config):
    with pytest.raises(ConfigError, match=r"^run\.yaml: model\.name: unknown model 'resnet_10'; "):
        config("model: resnet_10")


@pytest.mark.parametrize("written", ["1/16", "'1 / 16'", "0.0625"])
@pytest.mark.parametrize("way", ["file", "command line"])
def test_a_ratio_is_a_number(config, written, way):
    key = "algorithms.squeeze_excite.latent_channels"
    if way == "file":
        loaded = config(f"algorithms: {{squeeze_excite: {{latent_channels: {written}}}}}")
    else:
        loaded = config("", f"{key}={written}")
    assert loaded.algorithms["squeeze_excite"] == {"latent_channels": 0.0625}
    assert build_parts(loaded).algorithms[1].arguments["latent_channels"] == 0.0625
    assert make_plan("run.yaml", None, {}).plan.chosen if way == "file" else True


def test_ratios_are_numbers_wherever_numbers_belong(config):
    sizes = "algorithms: {squeeze_excite: {latent_channels: {'layer4*': 1/8, '*': 32/2}}}"
    assert config(sizes).algorithms["squeeze_excite"] == {
        "latent_channels": {"layer4*": 0.125, "*": 16}
    }
    loaded = config("algorithms: {eca: {gamma: 5/2}}\noptimizer: {lr: 1/8, momentum: 9/10}")
    assert loaded.algorithms["eca"] == {"gamma": 2.5}
    assert loaded.optimizer == {"name": "sgd", "lr": 0.125, "momentum": 0.9}
    assert config("algorithms: {label_smoothing: {smoothing: 1/5}}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer: {lr: 1/0}", "optimizer.lr: must be float"),
        ("optimizer: {lr: 1/2/3}", "optimizer.lr: must be float"),
        ("optimizer: {nesterov: 1/2}", "optimizer.nesterov: must be bool; got '1/2'"),
        ("algorithms: {squeeze_excite: {latent_channels: 1/0}}", "latent_channels must be"),
        ("algorithms: {squeeze_excite: {latent_channels: -1/16}}", "latent_channels must be"),
    ],
)
def test_text_that_is_not_a_ratio_stays_text(config, text, says):
    with pytest.raises(ConfigError, match=says):
        config(text)


def test_a_name_that_looks_like_a_ratio_stays_a_name(config):
    loaded = config("run_name: 1/16\nalgorithms: {squeeze_excite: {include: 1/16}}")
    assert loaded.run_name == "1/16"
    assert loaded.algorithms["squeeze_excite"]["include"] == "1/16"


def test_cuda_means_gpu(config):
    assert config("device: cuda").device == "gpu"
    assert config("", "device=cuda").device == "gpu"
    with pytest.raises(ConfigError, match="device: unknown device 'cuda:1'"):
        config("device: cuda:1")
