"""Fine-tuning: parts that are trained, others that stay, rates of their own."""

import pytest
import torch
from torch import nn

from composer_attn.errors import ArgumentError, ConfigError, PatternError
from composer_attn.functional import apply_eca, attended_modules
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.optim import attention_group, build_optimizer
from composer_attn.runs.components.parts import classifier_of, parameters_of
from composer_attn.runs.models import build_network
from composer_attn.runs.training.build import build_parts, build_trainer
from composer_attn.runs.training.train import train

CONFIG = """
run_name: tuned
model: {name: resnet10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 4, size: 32}
optimizer: {name: sgd, lr: 0.1}
algorithms: {eca: {min_channels: 256}}
batch_size: 8
max_duration: 2ep
device: cpu
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *changes: load_checked("run.yaml", list(changes))


def trained(config) -> tuple[nn.Module, set[str]]:
    """Train, and return the network with the names of whatever has changed."""
    parts = build_parts(config)
    trainer = build_trainer(config, parts, save_folder=None)
    network = parts.model.module
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():  # fresh statistics would hide what moves them
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer.fit()
    trainer.close()
    after = network.state_dict()
    return network, {name for name in before if not torch.equal(before[name], after[name])}


def test_what_is_not_named_stays_as_it_was(config):
    network, changed = trained(config("train=[attention,classifier]", "freeze_norms=true"))
    attention = {f"{name}.attention.conv.weight" for name in attended_modules(network)}
    assert changed == attention | {"fc.weight", "fc.bias"}
    assert len(attention) == 6


def test_statistics_of_frozen_norms_move_unless_they_are_frozen_too(config):
    network, changed = trained(config("train=[layer4.*]"))
    names = {name for name, _ in network.named_buffers()}
    assert changed >= names
    assert {name for name in changed - names if not name.startswith("layer4.")} == set()


def test_norms_that_are_trained_go_on_moving_their_statistics(config):
    _, changed = trained(config("train=[layer4.*]", "freeze_norms=true"))
    moved = {name.rpartition(".")[0] for name in changed if name.endswith("running_mean")}
    assert moved == {"layer4.0.bn1", "layer4.0.bn2", "layer4.0.downsample.1"}


def test_a_run_that_is_tuned_resumes_to_the_same_bits(config, tmp_path):
    tuned = ("train=[attention,classifier]", "optimizer.groups.attention.lr=0.3")
    train(config(*tuned, "save_folder=whole", "save_interval=1ep"))
    train(config(*tuned, "save_folder=part", "save_interval=1ep", "max_duration=1ep"))
    train(config(*tuned, "save_folder=part", "save_interval=1ep", "autoresume=true"))
    states = [
        torch.load(tmp_path / folder / "latest-rank0.pt", weights_only=False)["state"]["model"]
        for folder in ("whole", "part")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_parts_have_arguments_of_their_own(config):
    parts = build_parts(
        config(
            "optimizer.weight_decay=0.5",
            "optimizer.no_decay=[norm,attention]",
            "optimizer.groups={attention: {lr: 1}, classifier: {lr: 2}}",
            "optimizer.groups.layer4*.momentum=0.9",
        )
    )
    found = [
        (g["lr"], g["momentum"], g["weight_decay"], len(g["params"]))
        for g in parts.optimizer.param_groups
    ]
    assert found == [
        (0.1, 0, 0.5, 9), (0.1, 0, 0.0, 18),  # of no part: convolutions, norms
        (1, 0, 0.5, 0), (1, 0, 0.0, 0),  # attention, before the surgery
        (2, 0, 0.5, 2), (2, 0, 0.0, 0),
        (0.1, 0.9, 0.5, 3), (0.1, 0.9, 0.0, 6),
    ]  # fmt: skip
    trainer = build_trainer(config(), parts, save_folder=None)
    assert len(parts.optimizer.param_groups[3]["params"]) == 6
    trainer.close()


def test_attention_joins_the_group_that_is_meant_for_it():
    assert attention_group({"name": "sgd"}) is None
    assert attention_group({"name": "sgd", "no_decay": ["attention"]}) == 1
    assert attention_group({"name": "sgd", "groups": {"classifier": {}, "attention": {}}}) == 2


def test_the_classifier_is_the_last_layer_whatever_it_is_called():
    found = {"resnet10": "fc", "squeezenet1_1": "classifier.1", "vgg11": "classifier.6"}
    for name, layer in found.items():
        with torch.device("meta"):
            network = build_network({"name": name, "num_classes": 4})
        apply_eca(network, min_channels=64)
        assert classifier_of(network) is network.get_submodule(layer)
    with pytest.raises(ArgumentError, match="no linear layer or convolution, so no classifier"):
        classifier_of(nn.Sequential(nn.ReLU()))


def test_a_pattern_that_matches_nothing_says_what_is_near():
    network = build_network({"name": "resnet10", "num_classes": 4})
    assert len(parameters_of(network, "layer4.*")) == 9
    with pytest.raises(PatternError, match=r"the part 'layer5.\*': its pattern .* matches none of"):
        parameters_of(network, "layer5.*")
    with pytest.raises(PatternError, match="near names: layer4"):
        build_optimizer(network, {"name": "sgd", "lr": 1, "groups": {"layer44": {"lr": 1}}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train=[]", "train: train must be a list of attention, classifier, or patterns"),
        ("train=[1]", "train: train must be a list of attention, classifier, or patterns"),
        ("train=attention", "train: "),
        ("freeze_norms=true", "train: freeze_norms: true applies to what train freezes"),
        ("optimizer.groups={classifier: {rate: 1}}", "groups.classifier: unknown argument 'rate'"),
        ("optimizer.groups={classifier: 1}", r"groups.classifier must be \{lr: ..., ...\}; got 1"),
        ("optimizer.groups={classifier: {}}", "groups.classifier must be"),
        ("optimizer.groups=[classifier]", "optimizer.groups: must be|groups must be"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(change, says, config):
    with pytest.raises(ConfigError, match=says):
        config(change)


def test_a_part_that_is_not_there_is_one_line(config):
    with pytest.raises(PatternError, match=r"'layer9.\*'.*near names: ") as caught:
        build_trainer(config("train=['layer9.*']"), build_parts(config()), save_folder=None)
    assert len(str(caught.value).splitlines()) == 1
