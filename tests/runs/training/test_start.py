"""What a run starts from: a plain run's checkpoint gives its weights to one with attention."""

import json
from copy import deepcopy

import pytest
import torch

from composer_attn.errors import CheckpointError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.models import build_network
from composer_attn.runs.training.build import build_parts, build_trainer
from composer_attn.runs.training.train import train
from tests.commands import invoke

CONFIG = """
model: {name: shufflenet_v2_x0_5, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
eval_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 4
max_duration: 2ba
device: cpu
"""
ATTENTION = {
    "squeeze_excite": "algorithms={squeeze_excite: {min_channels: 64, start: identity}}",
    "eca": "algorithms={eca: {min_channels: 64, start: identity}}",
}
each_attention = pytest.mark.parametrize("attention", ATTENTION.values(), ids=ATTENTION)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of runs that came to their end: plain, with BlurPool, and with ECA."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "run.yaml").write_text(CONFIG)
    found = {}
    for name, more in (
        ("plain", []),
        ("blurpool", ["algorithms={blurpool: {}}"]),
        ("eca", [ATTENTION["eca"]]),
    ):
        train(load_checked(folder / "run.yaml", [f"save_folder={folder}/{name}", *more]))
        found[name] = str(folder / name / "latest-rank0.pt")
    return found


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def weights_of(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state"]["model"]


def start(config):
    parts = build_parts(config)
    return parts, build_trainer(config, parts, save_folder=None)


@each_attention
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_plain_checkpoint_starts_a_run_with_attention(attention, weights_only, saved, config):
    more = (attention, f"load_weights_only={weights_only}")
    fresh = deepcopy(start(config(attention))[1].state.model.state_dict())
    parts, trainer = start(config(f"load_path={saved['plain']}", *more))
    plain, state = weights_of(saved["plain"]), trainer.state.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
    own = set(state) - set(plain)
    assert own
    assert all(torch.equal(state[name], fresh[name]) for name in own)
    assert trainer.state.timestamp.batch == 0
    # From start=identity, the network computes what the plain one did.
    network = build_network({"name": "shufflenet_v2_x0_5", "num_classes": 10})
    network.load_state_dict({n.removeprefix("module."): t for n, t in plain.items()})
    images = torch.randn(2, 3, 32, 32)
    found = parts.model.module.eval()(images)
    torch.testing.assert_close(found, network.eval()(images), rtol=1e-5, atol=1e-5)


def test_it_trains_from_there_and_the_summary_says_so(saved, config, tmp_path, capfd):
    summary = train(
        config(f"load_path={saved['plain']}", ATTENTION["eca"], "run_name=new", "optimizer.lr=0")
    )
    text = f"weights of {saved['plain']}, made without attention; eca from start=identity"
    assert summary.started_from == text
    assert json.loads((tmp_path / "runs/new/summary.json").read_text())["started_from"] == text
    summary.show()
    assert "started from" in capfd.readouterr().out
    trained = weights_of(tmp_path / "runs/new/latest-rank0.pt")
    assert any(name.endswith("attention.conv.weight") for name in trained)
    plain = weights_of(saved["plain"])
    assert torch.equal(trained["module.fc.weight"], plain["module.fc.weight"])  # at a rate of 0


def test_a_start_that_is_not_given_is_papers(saved, config):
    parts, _ = start(config(f"load_path={saved['plain']}", "algorithms.eca={min_channels: 64}"))
    assert parts.start.text.endswith("; eca from start=paper")


@each_attention
def test_other_algorithms_of_both_runs_are_no_matter(attention, saved, config):
    both = attention.replace("={", "={blurpool: {}, ")
    _, trainer = start(config(f"load_path={saved['blurpool']}", both))
    plain, state = weights_of(saved["blurpool"]), trainer.state.model.state_dict()
    assert any("blur" in name for name in plain)
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_a_run_that_goes_on_goes_on_from_its_own(saved, config):
    more = (f"load_path={saved['plain']}", ATTENTION["eca"], "autoresume=true")
    whole = train(config(*more, "run_name=whole"))
    train(config(*more, "run_name=halves", "max_duration=1ba"))
    halves = train(config(*more, "run_name=halves"))
    assert halves.metrics == whole.metrics
    assert halves.started_from == whole.started_from
    first, second = (weights_of(f"runs/{n}/latest-rank0.pt") for n in ("whole", "halves"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("overrides", [[], [ATTENTION["eca"]]], ids=["by itself", "passed"])
def test_a_checkpoint_with_the_runs_attention_is_loaded_whole(overrides, saved, config):
    parts, trainer = start(config(f"load_path={saved['eca']}", *overrides))
    assert parts.start.text == f"checkpoint {saved['eca']}"
    assert trainer.state.timestamp.batch == 2
    state = trainer.state.model.state_dict()
    assert all(torch.equal(state[name], t) for name, t in weights_of(saved["eca"]).items())


def test_a_run_from_nothing_says_nothing(config):
    assert build_parts(config()).start.text is None


def test_a_checkpoint_with_another_attention_is_refused_by_name(saved, config):
    with pytest.raises(
        ConfigError, match=r"load_path: .* was made with ComposerAttnECA, but this "
    ):
        build_parts(config(f"load_path={saved['eca']}", ATTENTION["squeeze_excite"]))


def test_sharded_parameters_take_plain_weights_another_way(saved, config):
    sharded = config(f"load_path={saved['plain']}", ATTENTION["eca"])
    sharded.parallelism = "fsdp2"
    with pytest.raises(ConfigError, match=r"under fsdp2 load its weights with model\.weights"):
        build_parts(sharded)


@each_attention
def test_a_runs_checkpoint_is_a_file_of_weights(attention, saved, config):
    _, trainer = start(config(f"model.weights={saved['plain']}", attention))
    plain, state = weights_of(saved["plain"]), trainer.state.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_a_plain_checkpoint_of_another_network_is_refused(saved, config):
    other = config(f"load_path={saved['plain']}", ATTENTION["eca"], "model.name=resnet10")
    with pytest.raises(CheckpointError, match="holds weights of a different network: "):
        train(other)


def test_a_dry_run_says_what_it_would_start_from(saved, config, capfd, monkeypatch):
    config()
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["run.yaml", f"load_path={saved['plain']}", ATTENTION["eca"]]
    assert invoke("train", "--dry-run", *arguments) == 0
    assert f"weights of {saved['plain']}, made without attention" in capfd.readouterr().out
