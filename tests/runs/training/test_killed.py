"""Killed anywhere, also in the middle of a write, a run goes on to the same end, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.runs.killed import BATCHES

ROOT = Path(__file__).parents[3]


def trained(folder: Path, algorithm: str, ranks: int, seed: int, kills: int) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.runs.killed", str(folder), algorithm]
        + [str(number) for number in (ranks, seed, kills)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "codes.json").read_text())


def losses(file: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for line in file.read_text().splitlines():
        batch, loss = line.split()
        found.setdefault(int(batch), set()).add(loss)
    return found


def assert_equal(first, second, where: str = "") -> None:
    """Compare nested containers, tensors to the bit."""
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}/{index}")
    else:
        assert str(first) == str(second), where


def assert_same_end(folder: Path, algorithm: str, ranks: int, seed: int, kills: int) -> None:
    codes = trained(folder, algorithm, ranks, seed, kills)
    assert codes["whole"] == codes["resumed"] == [0] * ranks
    assert len(codes["killed"]) == kills
    for kill in codes["killed"]:
        # By SIGKILL or, in the middle of a file, SIGXFSZ; the other ranks by themselves.
        assert kill["codes"][kill["victim"]] == (-25 if kill["moment"] == "writing" else -9)
        assert all(code != 0 for code in kill["codes"])
    for rank in range(ranks):
        whole = losses(folder / "whole" / f"losses-rank{rank}.txt")
        assert sorted(whole) == list(range(1, BATCHES + 1))
        assert all(len(values) == 1 for values in whole.values())
        # Also of the batches that were trained more than once.
        assert losses(folder / "killed" / f"losses-rank{rank}.txt") == whole
    ends = [folder / run / "runs" / "killed" for run in ("whole", "killed")]
    states = [torch.load(end / "latest-rank0.pt", weights_only=False) for end in ends]
    for part in ("model", "optimizers"):
        assert_equal(*(state["state"][part] for state in states))
    assert_equal(*(state["rng"] for state in states))
    summaries = [json.loads((end / "summary.json").read_text()) for end in ends]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    kept = sorted(path.name for path in ends[1].iterdir() if path.suffix == ".pt")
    assert kept == ["ep3-ba14-rank0.pt", "ep3-ba16-rank0.pt", "latest-rank0.pt"]


def test_a_run_that_is_killed_three_times(tmp_path):
    assert_same_end(tmp_path, "eca", ranks=1, seed=1, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "ranks", "seed", "kills"),
    [
        ("eca", 1, 11, 10),
        ("squeeze_excite", 1, 12, 10),
        ("eca", 2, 13, 10),
        ("squeeze_excite", 2, 14, 10),
        ("eca, not fused", 1, 15, 5),
        ("squeeze_excite, not fused", 1, 16, 5),
        ("eca, not fused", 2, 17, 5),
        ("squeeze_excite, not fused", 2, 18, 5),
    ],
)
def test_runs_that_are_killed_many_times(algorithm, ranks, seed, kills, tmp_path):
    assert_same_end(tmp_path, algorithm, ranks, seed, kills)
