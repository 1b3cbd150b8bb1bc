"""From a config to Composer's objects."""

import warnings

import pytest
import torch
import torchvision

from composer_attn.algorithms import ComposerAttnECA
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.optim import build_optimizer
from composer_attn.runs.components.registry import (
    ALGORITHMS,
    CALLBACKS,
    LOGGERS,
    SCHEDULERS,
    snake_case,
)
from composer_attn.runs.config.schema import RunConfig
from composer_attn.runs.models import build_model, build_network
from composer_attn.runs.training.build import build_parts
from tests.pictures import write_image_folder


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


@pytest.mark.parametrize(
    "section",
    [
        {"name": "resnet10"},
        {"name": "resnet10", "num_classes": None},
        {"name": "shufflenet_v2_x0_5"},
        {"name": "simplified_efficientnet"},  # whose own default is 100
        {"name": "timm/test_resnet"},
    ],
    ids=str,
)
def test_without_num_classes_a_network_is_as_wide_as_its_data(section):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = build_parts(config(model=section)).model
    assert model.num_classes == 10
    assert model.module(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_it_draws_the_same_parameters_as_one_that_is_told(tmp_path):
    told, untold = (
        build_parts(config(model={"name": "resnet10", **section})).model.state_dict()
        for section in ({"num_classes": 10}, {})
    )
    assert all(torch.equal(told[name], untold[name]) for name in told)


def test_a_folders_classes_are_counted(tmp_path):
    write_image_folder(tmp_path, classes=3, images=4)
    data = {"name": "image_folder", "root": f"{tmp_path}/train", "augmentation": "resnet"}
    parts = build_parts(config(model={"name": "resnet10"}, train_dataset={**data, "size": 32}))
    assert parts.model.num_classes == 3


def test_more_classes_than_the_data_has_are_pointed_out():
    said = r"the model has 12 classes, but train_dataset has 10: 2 outputs have no .*num_classes=10"
    with pytest.warns(UserWarning, match=said):
        build_parts(config(model={"name": "resnet10", "num_classes": 12}))


def test_published_weights_keep_the_width_they_were_trained_with(monkeypatch):
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights,
        "get_state_dict",
        lambda *_, **__: torchvision.models.resnet18().state_dict(),
    )
    section = {"name": "resnet18", "weights": "IMAGENET1K_V1"}
    with pytest.warns(UserWarning, match="the model has 1000 classes, but train_dataset has 10"):
        assert build_parts(config(model=section)).model.num_classes == 1000


def test_weights_from_a_file_go_into_a_network_as_wide_as_the_data(tmp_path):
    network = build_network({"name": "resnet10", "num_classes": 10})
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    section = {"name": "resnet10", "weights": f"{tmp_path}/weights.pt"}
    found = build_parts(config(model=section)).model.module
    assert torch.equal(found.fc.weight, network.fc.weight)


@pytest.mark.parametrize("key", ["train_dataset", "eval_dataset"])
def test_fewer_classes_than_the_data_has_are_refused(key):
    data = {"name": "synthetic", "num_samples": 8, "num_classes": 20, "size": 32}
    with pytest.raises(ConfigError, match=f"^{key}: it has 20 classes, but the model has 10: se"):
        build_parts(config(**{key: data}))


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
    with pytest.raises(ArgumentError, match="a list of any of bias, norm, attention"):
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
