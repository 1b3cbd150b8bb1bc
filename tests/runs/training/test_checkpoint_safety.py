"""Checkpoints from strangers: read as data, parsed, and refused before anything in them runs."""

import os
import zipfile
from contextlib import nullcontext

import composer
import composer.algorithms as theirs
import pytest
import torch
from composer.core import Time
from composer.utils.checkpoint import safe_torch_load
from packaging.version import Version

from composer_attn import ECA, SqueezeExcite
from composer_attn.errors import CheckpointError, ConfigError, TornCheckpointError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.checkpoint_safety import check_checkpoint, guarded
from composer_attn.runs.training.train import train

CONFIG = """
run_name: small
model: {name: shufflenet_v2_x0_5, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 4
max_duration: 1ba
device: cpu
algorithms: {eca: {min_channels: 256}}
"""
MARKER = "attacked"
CALL = f"open({MARKER!r}, 'w')"


class Attack:
    """What a hostile file holds: a call that its unpickling makes."""

    def __reduce__(self):
        return open, (MARKER, "w")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint that a run wrote."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "run.yaml").write_text(CONFIG)
    train(load_checked(folder / "run.yaml", [f"save_folder={folder}/saved"]))
    return folder / "saved" / "latest-rank0.pt"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads the config above with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


@pytest.fixture
def crafted(written, tmp_path):
    """Return a function that changes what the checkpoint holds, and writes it elsewhere."""

    def craft(change):
        content = torch.load(written, weights_only=False)
        content = change(content) or content
        torch.save(content, tmp_path / "crafted.pt")
        return str(tmp_path / "crafted.pt")

    return craft


def with_algorithm(name, text):
    def change(content):
        content["state"]["algorithms"] = [(name, {"repr": text})]

    return change


def in_model(content, name, value):
    content["state"]["model"][name] = value


CODE = {
    "beside the state": lambda c: c.update(more=Attack()),
    "as a weight": lambda c: in_model(c, "module.fc.bias", Attack()),
    "as a callback's state": lambda c: c["state"]["callbacks"].update(LRMonitor=Attack()),
    "as the whole": lambda c: Attack(),
    "a call as an argument": with_algorithm("ComposerAttnECA", f"ComposerAttnECA(gamma={CALL})"),
    "a call in a list": with_algorithm("BlurPool", f"BlurPool(min_channels=[{CALL}])"),
    "a call behind": with_algorithm("BlurPool", f"BlurPool() if {CALL} else 0"),
    "a call after": with_algorithm("BlurPool", f"BlurPool().x({CALL})"),
    "a call as a name": with_algorithm("BlurPool", f"BlurPool(**{CALL})"),
    "a comprehension": with_algorithm("BlurPool", f"BlurPool(min_channels=[{CALL} for _ in 'a'])"),
    "another name": with_algorithm("BlurPool", f"blurpool.os.system({CALL})"),
    "a Time that is none": with_algorithm("BlurPool", f"BlurPool(x=Time({CALL}, TimeUnit.EPOCH))"),
    "an f-string": with_algorithm("BlurPool", f'BlurPool(min_channels=f"{{{CALL}}}")'),
    "an unknown algorithm": with_algorithm("os", "os.system('true')"),
    "a module": with_algorithm("blurpool", "blurpool.BlurPool()"),
    "a dunder": with_algorithm("__loader__", "__loader__()"),
}


@pytest.mark.parametrize("change", CODE.values(), ids=CODE)
@pytest.mark.parametrize("weights_only", [False, True])
def test_code_in_a_checkpoint_is_refused_and_has_not_run(
    change, weights_only, crafted, config, tmp_path
):
    path = crafted(change)
    with pytest.raises(CheckpointError) as caught:
        train(config(f"load_path={path}", f"load_weights_only={weights_only}"))
    assert str(caught.value).startswith(path)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["crafted.pt", "run.yaml"]


def test_unchecked_checkpoints_run_code_or_a_newer_composer_refuses(crafted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = crafted(CODE["beside the state"])
    refuses = Version(composer.__version__) >= Version("0.33.0.dev0")
    with pytest.raises(Exception, match="allowlist") if refuses else nullcontext():
        safe_torch_load(path)
    assert (tmp_path / MARKER).exists() is not refuses


def test_composer_itself_asks_before_it_loads_a_file_from_anywhere(crafted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with guarded(), pytest.raises(CheckpointError):
        safe_torch_load(crafted(CODE["beside the state"]))
    assert not (tmp_path / MARKER).exists()
    assert "CHECKPOINT_VALIDATION_FUNCTION" not in os.environ


NO_CHECKPOINTS = {
    "no state": (lambda c: {"model": {}}, CheckpointError, "has no model state"),
    "no model": (lambda c: {"state": {"model": 1}}, CheckpointError, "has no model state"),
    "a list": (lambda c: [c], CheckpointError, "has no model state"),
    "odd algorithms": (
        lambda c: c["state"].update(algorithms={"BlurPool": 1}),
        CheckpointError,
        "its algorithms are not a list",
    ),
    "NaN": (
        lambda c: in_model(c, "module.fc.bias", torch.full((10,), torch.nan)),
        CheckpointError,
        r"holds NaN in module\.fc\.bias: the run that wrote it had diverged",
    ),
    "another shape": (
        lambda c: in_model(c, "module.fc.bias", torch.zeros(3)),
        ConfigError,
        r"size mismatch for module\.fc\.bias",
    ),
}


@pytest.mark.parametrize(("change", "error", "says"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_of_this_run(change, error, says, crafted, config):
    with pytest.raises(error, match=says):
        train(config(f"load_path={crafted(change)}"))


def test_a_checkpoint_cut_at_every_kilobyte_is_torn(tmp_path):
    file = tmp_path / "small.pt"
    torch.save({"state": {"model": {"weight": torch.zeros(8192)}}}, file)
    check_checkpoint(file)
    whole = file.read_bytes()
    lengths = [*range(0, len(whole), 1024), len(whole) - 1]
    assert len(lengths) > 30
    for length in lengths:
        file.write_bytes(whole[:length])
        with pytest.raises(TornCheckpointError):
            check_checkpoint(file)


def test_a_checkpoint_that_would_swell_is_refused(crafted, tmp_path):
    path = crafted(lambda content: None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9999", bytes(200_000_000))
    with pytest.raises(CheckpointError, match="would unpack to 2"):
        check_checkpoint(path)


@pytest.mark.parametrize(
    "algorithm",
    [
        SqueezeExcite(include=["a.*", "b'\"c"]),
        ECA(filter_fn=os.path.join),
        ECA(kernel_size={"layer1*": 3, "*": 5}),
        theirs.BlurPool(),
        theirs.Factorize(),
        theirs.GhostBatchNorm(),
        theirs.SqueezeExcite(),
        theirs.StochasticDepth("ResNetBottleneck", drop_warmup=Time.from_timestring("0.1dur")),
        theirs.WeightStandardization(),
        theirs.LabelSmoothing(),
        theirs.EMA(),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_the_algorithms_of_honest_checkpoints_pass(algorithm, tmp_path):
    listed = [(type(algorithm).__qualname__, {"repr": repr(algorithm)})]
    torch.save({"state": {"model": {}, "algorithms": listed}}, tmp_path / "honest.pt")
    check_checkpoint(tmp_path / "honest.pt")


def test_a_checkpoint_of_our_own_names_what_is_allowed_and_nothing_else(written):
    check_checkpoint(written)
    named = set(torch.serialization.get_unsafe_globals_in_checkpoint(written))
    rebuild = {n for n in named if n.endswith("._reconstruct")}
    assert len(rebuild) == 1
    assert named - rebuild == {
        "numpy.ndarray", "numpy.dtype", "torch.torch_version.TorchVersion", "datetime.timedelta"
    }  # fmt: skip
