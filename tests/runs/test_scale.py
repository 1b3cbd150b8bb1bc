"""Several processes: nodes, what is printed and documented about them, sharing, dying, FSDP2."""

import json
import os
import re
import shlex
import signal
import time
from contextlib import suppress

import pytest
import torch
from packaging.version import Version

from composer_attn.runs.config.parallelism import _FSDP2_TORCH
from tests.commands import ROOT, free_port, invoke, launch, start

CONFIG = """
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 32}
eval_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 8
max_duration: 2ep
device: cpu
algorithms: {squeeze_excite: {min_channels: 256}}
"""
# On images of 32x32, the last norms see four values of a channel on each rank: the rounding of
# fused and unfused attention, of one thread and two, and of DDP and FSDP2, then decides signs.
LARGER = ("train_dataset.size=64", "eval_dataset.size=64")
FSDP2_WORKS = Version(torch.__version__.partition("+")[0]) >= _FSDP2_TORCH


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Train on one node of two; return what was printed, and the folder of the run."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "run.yaml").write_text(CONFIG)
    done = launch(2, "-m", "composer_attn", "train", "run.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, folder / "runs" / "run"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def nodes(folder):
    """Start the command that the multi-node recipe opens with, as two nodes of one process each."""
    command = (ROOT / "yamls/imagenet_mds_se.yaml").read_text().splitlines()[0].removeprefix("# ")
    here = {"-n 8": "-n 1", "size 16": "size 2", "HOST": "127.0.0.1", "29500": str(free_port())}
    for theirs, ours in here.items():
        assert command.count(theirs) == 1
        command = command.replace(theirs, ours)
    command = command.replace("yamls/imagenet_mds_se.yaml", "run.yaml")
    started = []

    def nodes(*overrides: str):
        for rank in (0, 1):
            line = command.replace("--node_rank 0", f"--node_rank {rank}")
            started.append(start(*shlex.split(line), *overrides, cwd=folder))
        return started

    yield nodes
    for process in started:
        kill(process)


def kill(node) -> None:
    """End a node's launcher and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


def results_of(folder) -> tuple[dict, dict]:
    summary = json.loads((folder / "summary.json").read_text())
    state = torch.load(folder / "latest-rank0.pt", weights_only=False)["state"]
    return summary, state["model"]


def test_two_ranks_train_one_network_and_one_of_them_reports(together, folder, monkeypatch):
    done, run = together
    assert done.stdout.count("attended layers") == 1
    assert "do not match bucket view strides" not in done.stderr
    summary, _ = results_of(run)
    monkeypatch.chdir(folder)
    assert invoke("train", "run.yaml") == 0
    alone, _ = results_of(folder / "runs" / "run")
    assert (summary["ranks"], alone["ranks"]) == (2, 1)
    assert summary["attended_layers"] == alone["attended_layers"] == 6
    # Batch norm sees half of each batch: not the same numbers, but the same network and data.
    assert summary["parameters_after"] == alone["parameters_after"]
    assert abs(summary["metrics"]["cross_entropy"] - alone["metrics"]["cross_entropy"]) < 1


def test_two_nodes_come_to_what_one_node_of_two_comes_to(together, folder, nodes):
    for node in nodes():
        output, _ = node.communicate(timeout=200)
        assert node.returncode == 0, output
    apart, apart_model = results_of(folder / "runs" / "run")
    summary, model = results_of(together[1])
    assert apart["metrics"] == summary["metrics"]
    assert apart["ranks"] == summary["ranks"] == 2
    assert list(apart_model) == list(model)
    assert all(torch.equal(apart_model[name], model[name]) for name in model)


def test_the_documented_command_for_nodes_is_the_recipes():
    recipe = (ROOT / "yamls/imagenet_mds_se.yaml").read_text().splitlines()[0]
    (documented,) = re.findall(
        r"^ +(composer .*--node_rank.*)$", read("docs/runs.md"), re.MULTILINE
    )
    assert recipe == f"# {documented.replace('CONFIG', 'yamls/imagenet_mds_se.yaml')}"


def read(path: str) -> str:
    return (ROOT / path).read_text()


def test_a_node_that_dies_ends_the_other(folder, nodes):
    first, second = nodes("max_duration=100000ep", "eval_dataset=null", "save_interval=1ep")
    deadline = time.monotonic() + 120
    while not (folder / "runs/run/latest-rank0.pt").exists():  # until both are training
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill(second)
    output, _ = first.communicate(timeout=60)
    assert first.returncode != 0, output


def test_a_batch_that_ranks_cannot_share_ends_all_ranks(folder):
    done = launch(2, "-m", "composer_attn", "train", "run.yaml", "batch_size=7", cwd=folder)
    assert done.returncode != 0
    assert "batch_size must be a multiple of the 2 ranks; got 7" in done.stderr + done.stdout
    assert [path.name for path in folder.iterdir()] == ["run.yaml"]


def test_fsdp2_gives_ddps_losses_or_is_refused(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    if not FSDP2_WORKS:
        assert invoke("train", "run.yaml", "parallelism=fsdp2") == 2
        error = capfd.readouterr().err
        assert error.startswith("composer-attn: command line: parallelism: fsdp2 needs torch >= 2.")
        assert len(error.splitlines()) == 1
        assert [path.name for path in folder.iterdir()] == ["run.yaml"]
        return
    losses, entropy = {}, {}
    for kind in ("ddp", "fsdp2"):
        options = [f"parallelism={kind}", f"loggers.file.filename={kind}.txt", *LARGER]
        entropy[kind] = sharded(folder, kind, *options)["metrics"]["cross_entropy"]
        found = re.findall(r"loss/train/total: (\S+)", (folder / f"{kind}.txt").read_text())
        losses[kind] = [float(loss) for loss in found]
        assert len(losses[kind]) >= 4
    assert losses["fsdp2"] == pytest.approx(losses["ddp"], rel=1e-4)
    # DDP's ranks have each taken the last step's statistics for themselves.
    assert entropy["fsdp2"] == pytest.approx(entropy["ddp"], rel=1e-2)


def sharded(folder, name, *options):
    """Train on two ranks; return the summary."""
    arguments = ["train", "run.yaml", f"run_name={name}", *options]
    done = launch(2, "-m", "composer_attn", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "runs" / name / "summary.json").read_text())


def saved(folder, name):
    content = torch.load(folder / "runs" / name / "latest-rank0.pt", weights_only=False)
    optimizer = content["state"]["optimizers"]["SGD"]["state"]
    momentum = {key: value["momentum_buffer"] for key, value in optimizer.items()}
    return content["state"]["model"], momentum


@pytest.mark.slow
@pytest.mark.skipif(not FSDP2_WORKS, reason=f"fsdp2 is refused below torch {_FSDP2_TORCH}")
@pytest.mark.parametrize("first", ["fsdp2", "ddp"])
def test_a_run_under_fsdp2_resumes_what_it_saved_to_the_bit_and_what_ddp_saved(folder, first):
    whole = sharded(folder, "whole", "parallelism=fsdp2", *LARGER)
    resumed = ("cut", "autoresume=true", *LARGER)
    sharded(folder, *resumed, f"parallelism={first}", "max_duration=1ep")
    rest = sharded(folder, *resumed, "parallelism=fsdp2")
    # DDP's gradients differ in the last digits, for the two steps that it took.
    apart = (0, 0) if first == "fsdp2" else (1e-5, 1e-4)
    for ours, theirs, atol in zip(saved(folder, "cut"), saved(folder, "whole"), apart, strict=True):
        assert any(".attention." in name for name in ours)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    assert first == "ddp" or rest["metrics"] == whole["metrics"]


@pytest.mark.slow
@pytest.mark.skipif(not FSDP2_WORKS, reason=f"fsdp2 is refused below torch {_FSDP2_TORCH}")
def test_what_fsdp2_saved_goes_on_in_one_process(folder, monkeypatch):
    sharded(folder, "cut", "autoresume=true", "parallelism=fsdp2", "max_duration=1ep")
    monkeypatch.chdir(folder)
    assert invoke("train", "run.yaml", "run_name=cut", "autoresume=true") == 0
