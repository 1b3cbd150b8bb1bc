"""Batch norms that are synchronized over the ranks of a run."""

import json

import pytest
import torch
from composer.algorithms.warnings import NoEffectWarning
from composer.utils import dist
from torch import nn

from composer_attn.errors import ConfigError, ModelError
from composer_attn.functional import fuse_attention
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.models import synchronize_norms
from composer_attn.runs.training.build import build_parts
from tests.commands import invoke, launch
from tests.fusion.own_networks import randomized
from tests.ops.regions import distance

CONFIG = """
run_name: small
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 24, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 12
max_duration: 2ep
device: cpu
algorithms: {squeeze_excite: {min_channels: 256}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def norms_of(model: nn.Module) -> set[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return {type(each).__name__ for each in model.modules() if isinstance(each, kinds)}


def test_norms_are_converted_on_several_ranks_alone(folder, monkeypatch):
    plain = build_parts(load_checked("run.yaml", []))
    alone = build_parts(load_checked("run.yaml", ["sync_batch_norm=true"]))
    assert norms_of(plain.model) == norms_of(alone.model) == {"BatchNorm2d"}
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    converted = build_parts(load_checked("run.yaml", ["sync_batch_norm=true"]))
    assert norms_of(converted.model) == {"SyncBatchNorm"}
    state, expected = converted.model.state_dict(), plain.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    of_norm = {id(p) for p in converted.model.parameters()}
    assert {id(p) for g in converted.optimizer.param_groups for p in g["params"]} == of_norm


def test_timms_norms_keep_their_activation():
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(8, act_layer=nn.SiLU)
    # Where torch.distributed is initialized, torch's synchronized norms do not train on CPU.
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.BatchNorm2d(8))).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    with pytest.raises(ModelError, match="timm's BatchNormAct2d cannot be synchronized on CPU"):
        synchronize_norms(model, on_cpu=True)
    assert type(model[2]) is nn.BatchNorm2d
    synchronize_norms(model, on_cpu=False)
    assert [type(m).__name__ for m in model[1:]] == ["SyncBatchNormAct", "SyncBatchNorm"]
    torch.testing.assert_close(model(x), expected)
    assert [site.function for site in fuse_attention(model, "reference", norms=True).norms] == [
        "silu"
    ]


def test_a_model_without_batch_norm_is_a_warning(folder):
    config = load_checked("run.yaml", ["sync_batch_norm=true", "model.name=convnext_tiny"])
    with pytest.warns(NoEffectWarning, match="the model has no batch norm"):
        build_parts(config)


@pytest.mark.parametrize("value", ["sometimes", "2.5", "[true]"])
def test_anything_but_a_bool_is_refused(folder, value):
    with pytest.raises(ConfigError, match="sync_batch_norm"):
        load_checked("run.yaml", [f"sync_batch_norm={value}"])


def trained(folder, ranks: int, name: str, *changes: str) -> dict[str, torch.Tensor]:
    """Train on some ranks, on one in this process; return the network."""
    command = ("train", "run.yaml", f"run_name={name}", *changes)
    if ranks == 1:
        assert invoke(*command) == 0
    else:
        done = launch(ranks, "-m", "composer_attn", *command, cwd=folder)
        assert done.returncode == 0, done.stderr
    path = folder / "runs" / name
    assert json.loads((path / "summary.json").read_text())["attended_layers"] == 6
    return torch.load(path / "latest-rank0.pt", weights_only=False)["state"]["model"]


@pytest.mark.slow
@pytest.mark.parametrize("fuse", ["true", "false"])
def test_two_ranks_train_as_one_does_on_the_whole_batch(folder, fuse):
    given = f"algorithms.squeeze_excite.fuse={fuse}"
    one = trained(folder, 1, "one", given)
    two = trained(folder, 2, "two", given, "sync_batch_norm=true")
    apart = trained(folder, 2, "apart", given)
    assert list(one) == list(two)
    differences = [
        max(distance(state[key], value) for key, value in one.items()) for state in (two, apart)
    ]
    assert differences[0] < 1e-3 < 1e-2 < differences[1]
