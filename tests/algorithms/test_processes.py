"""Two processes through Composer's launcher: one launch, which these tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.algorithms.training import assert_same, each_algorithm, moved, weights
from tests.algorithms.two_processes import WRAPPER, network, train

ROOT = Path(__file__).parents[2]
RANKED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_PORT"}


def launch(folder: Path) -> None:
    # Without a port of ours the launcher finds a free one.
    environment = {name: value for name, value in os.environ.items() if name not in RANKED}
    launcher = [sys.executable, "-m", "composer.cli.launcher", "-n", "2"]
    outputs = ["--stdout", str(folder / "stdout{rank}"), "--stderr", str(folder / "stderr{rank}")]
    done = subprocess.run(
        [*launcher, *outputs, "-m", "tests.algorithms.two_processes", str(folder)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    (folder / "stderr0").write_text(done.stderr)
    assert done.returncode == 0, done.stderr + (folder / "stderr1").read_text()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, request):
    """The folder where two processes wrote; one launch, however many workers pytest-xdist has."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if hasattr(request.config, "workerinput") else shared
    with FileLock(shared / "two_processes.lock"):
        folder = shared / "two_processes"
        if not folder.exists():
            folder.mkdir()
            launch(folder)
    return folder


@pytest.fixture
def launched(ranks):
    """What ranks 0 and 1 found."""
    return [torch.load(ranks / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture
def alone():
    """Train in this process on whole batches; return the weights at the start and the end."""

    def run(key: str):
        torch.manual_seed(0)
        run, start = train(key, network())
        return start, weights(run.state.model)

    return run


@each_algorithm
@pytest.mark.parametrize("wrapping", ["replicated", "sharded"])
def test_every_rank_draws_the_same_attention_as_a_process_alone(key, wrapping, launched, alone):
    start, _ = alone(key)
    for rank in launched:
        assert_same(rank[key, wrapping]["start"], start)


@each_algorithm
def test_ranks_end_with_the_same_parameters(key, launched):
    first, second = (rank[key, "replicated"] for rank in launched)
    assert_same(first["end"], second["end"])
    attention = {name: first["end"][name] for name in first["start"]}
    assert moved(first["start"], attention) == set(attention)


@each_algorithm
def test_two_processes_train_what_one_trains(key, launched, alone):
    _, end = alone(key)
    assert_same(launched[0][key, "replicated"]["end"], end, rtol=1e-5, atol=1e-6)


@each_algorithm
def test_two_processes_train_a_fused_network_as_an_unfused_one(key, launched):
    first, second = (rank[key, "fused"] for rank in launched)
    assert (first[True, "sites"], first[False, "sites"]) == (2, 0)
    assert_same(first[True], first[False], rtol=1e-4, atol=1e-5)
    learned = [
        {k: v for k, v in end[True].items() if "running" not in k} for end in (first, second)
    ]
    assert_same(*learned)


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_have_the_strides_that_ddp_expects(rank, ranks):
    complaints = (ranks / f"stderr{rank}").read_text()
    assert "FSDP2 Config/APIs are experimental" in complaints  # so warnings do arrive here
    assert "Grad strides do not match" not in complaints


@each_algorithm
def test_a_sharded_model_that_is_not_attended_refuses_the_checkpoint(key, launched):
    for rank in launched:
        assert rank[key, "refused"].startswith("ModelError('module is a FSDPModule, on which")


@each_algorithm
def test_wrappers_around_convolutions_are_not_taken_for_lost_attention(key, launched):
    expected = [f"module.{site}.{WRAPPER}" for site in (0, 2)]
    for rank in launched:
        assert rank[key, "sharded"]["sites"] == expected
