"""From a config to Composer's objects."""

import pytest
import torch

from composer_attn.algorithms import ComposerAttnECA
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.build import build_parts
from composer_attn.runs.config import RunConfig
from composer_attn.runs.models import build_model
from composer_attn.runs.optim import build_optimizer
from composer_attn.runs.registry import ALGORITHMS, CALLBACKS, LOGGERS, SCHEDULERS, snake_case


def config(**changes) -> RunConfig:
    return RunConfig(
        **{
            "model": {"name": "resnet10", "num_classes": 10},
            "train_dataset": {"name": "synthetic", "num_samples": 8, "num_classes": 10, "size": 32},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "batch_size": 4,
            **changes,
        }
    )


def test_the_same_seed_builds_the_same_parameters():
    first, second, other = (build_parts(config(seed=s)).model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["module.conv1.weight"], other["module.conv1.weight"])


def test_algorithms_that_rebuild_convolutions_come_before_ours_whatever_the_order():
    parts = build_parts(config(algorithms={"eca": None, "blurpool": {"min_channels": 8}}))
    assert [type(a).__name__ for a in parts.algorithms] == ["BlurPool", "ComposerAttnECA"]


@pytest.mark.parametrize(
    ("section", "width"),
    [
        ({"name": "simplified_efficientnet"}, 100),
        ({"name": "resnet18"}, 1000),
        ({"name": "resnet18", "num_classes": 7}, 7),
    ],
)
def test_metrics_are_as_wide_as_the_network(section, width):
    assert build_model(section).num_classes == width


def test_no_decay_splits_the_parameters_and_sends_attention_along():
    section = {"name": "sgd", "lr": 0.1, "weight_decay": 0.5}
    section["no_decay"] = ["bias", "norm", "attention"]
    parts = build_parts(config(optimizer=section, algorithms={"eca": None}))
    decayed, spared = parts.optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    network = parts.model.module
    assert any(p is network.conv1.weight for p in decayed["params"])
    for parameter in (network.bn1.weight, network.bn1.bias, network.fc.bias):
        assert any(p is parameter for p in spared["params"])
    total = len(decayed["params"]) + len(spared["params"])
    assert total == len(list(parts.model.parameters()))
    assert parts.algorithms[0].param_group == 1


def test_no_decay_refuses_what_it_does_not_know():
    with pytest.raises(ArgumentError, match="some of bias, norm, attention"):
        build_optimizer(torch.nn.Linear(1, 1), {"name": "sgd", "lr": 1, "no_decay": ["biases"]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"name": "resnet10", "num_classes": -1}}, "model: "),
        (
            {"optimizer": {"name": "sgd", "lr": -1.0}},
            "optimizer: ValueError: Invalid learning",
        ),
        ({"batch_size": 9}, "train_dataset: 8 samples do not fill one batch of 9"),
        ({"train_dataset": {"name": "digits", "split": "trian"}}, "split of digits must be train"),
        ({"algorithms": {"eca": {"kernel_size": 4}}}, "algorithms.eca: kernel_size must be odd"),
    ],
)
def test_a_component_that_refuses_its_arguments_is_named(changes, says):
    with pytest.raises(ConfigError) as caught:
        build_parts(config(**changes))
    assert says in str(caught.value)


def test_every_component_has_one_snake_case_name():
    names = ("LRMonitor", "BlurPool", "EMA", "NaNMonitor", "CosineAnnealingWithWarmup")
    assert [snake_case(name) for name in names] == [
        "lr_monitor", "blur_pool", "ema", "nan_monitor", "cosine_annealing_with_warmup",
    ]  # fmt: skip
    assert ALGORITHMS.table["eca"] is ComposerAttnECA
    assert ALGORITHMS.table["blurpool"] is ALGORITHMS.table["blur_pool"]
    assert ALGORITHMS.table["squeeze_excite"].__name__ == "ComposerAttnSqueezeExcite"
    assert ALGORITHMS.table["composer_squeeze_excite"].__module__.startswith("composer.algorithms")
    assert {"lr_monitor", "speed_monitor", "nan_monitor", "oom_observer"} <= set(CALLBACKS.table)
    assert {"cosine_annealing_with_warmup", "multi_step", "constant"} <= set(SCHEDULERS.table)
    assert {"file", "tensorboard", "wandb", "mlflow"} <= set(LOGGERS.table)
