"""The search as a command: listed, trained once, resumed, and reported."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.scaling import search as module
from composer_attn.runs.scaling.results import TOGETHER
from composer_attn.runs.scaling.search import search
from tests.commands import invoke, start
from tests.runs.runs_on_disk import write_run
from tests.runs.scaling.recipes import small_plan

RECIPE = """
run_name: small
model: {name: mobilenet_v2, width_mult: 0.25, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 40}
eval_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 40}
optimizer: {name: sgd, lr: 0.01}
batch_size: 8
max_duration: 2ep
device: cpu
"""
# Width and resolution in two parts: 3 candidates, and 3 lines.
SCALE = ("scale", "recipe.yaml", "--steps", "2", "--tolerance", "0.5")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """Replace the training of runs by writing them; return the names of those in each call."""
    calls = []

    def train(variants, out, ranks, imports, timed):
        assert not timed
        calls.append([variant.name for variant in variants])
        for variant in (v for v in variants if not v.folder.exists()):
            write_run(variant.folder, seed=variant.seed, accuracy=0.8)
        return []

    monkeypatch.setattr(module, "train_variants", train)
    return calls


def test_the_candidates_are_trained_before_the_lines_are_continued(trained, tmp_path):
    plan = small_plan()
    results, failed = search(plan, 2, tmp_path)
    first, then = trained
    assert first == [candidate.name for candidate in plan.trained] * 2
    lines = {line.name: line for line in results.lines}
    assert list(lines) == ["depth", "width", "resolution", TOGETHER]
    assert then == [line.larger[0].name for line in lines.values()] * 2
    assert len(set(first + then)) == plan.networks == 15
    assert not failed
    assert results.best.accuracies == (0.8, 0.8)


def test_without_larger_networks_the_grid_is_all(trained, tmp_path):
    plan = small_plan()
    alone = replace(plan, larger=dict.fromkeys(plan.larger, ()))
    search(alone, 1, tmp_path)
    assert len(trained) == 1


@pytest.mark.parametrize("seeds", [0, 1.5])
def test_a_number_of_seeds_that_makes_no_sense_is_refused(seeds, tmp_path):
    with pytest.raises(ArgumentError, match="seeds must be a whole number >= 1"):
        search(small_plan(), seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_search_within_a_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="composer-attn scale --ranks N"):
        search(small_plan(), 1, tmp_path / "out")


def test_a_dry_run_lists_the_candidates_and_writes_nothing(folder, capfd):
    assert invoke(*SCALE, "--dry-run") == 0
    said = capfd.readouterr().out
    rows = [line.split("  ")[0] for line in said.splitlines()[2:]]
    assert rows[:4] == ["the recipe", "width", "width, resolution", "resolution"]
    assert "7 networks to train, for 2ep each" in said
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "0.5"], "operations grow, must be a number >= 1.1"),
        (["--budget", "20"], "at most 16 times is supported"),
        (["--steps", "1"], "must be a whole number >= 2; got 1"),
        (["--seeds", "0"], "seeds must be a whole number >= 1; got 0"),
        (["eval_dataset=null"], "eval_dataset: is needed"),
        (["optimizer.rl=1"], "unknown argument of sgd 'rl'"),
        (["--tolerance", "0.001", "--phi", "1"], "--budget: no candidate has 2 times"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(folder, capfd, arguments, says):
    assert invoke("scale", "recipe.yaml", *arguments) == 2
    error = capfd.readouterr().err
    assert says in error
    assert len([line for line in error.splitlines() if "composer-attn:" in line]) == 1
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


def summaries(folder: Path) -> dict[str, float]:
    """Return when the summary of each finished run was written."""
    found = sorted(folder.glob("*/summary.json"))
    return {path.parent.name: path.stat().st_mtime for path in found}


@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_trains_nothing_twice(folder, capfd):
    command = ("composer-attn", *SCALE, "--out", "out")
    process = start(*command, cwd=folder)
    deadline = time.monotonic() + 300
    while len(summaries(folder / "out")) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same command again to continue" in said
    before = summaries(folder / "out")
    assert not (folder / "out" / "scaling.html").exists()

    capfd.readouterr()
    assert invoke(*command[1:]) == 0
    said = capfd.readouterr().out
    after = summaries(folder / "out")
    assert len(after) == 7
    assert {name: after[name] for name in before} == before
    assert "The most accurate way to spend 2 times the operations" in said
    assert "d1.000-w1.189-r1.189, seed 17: done" in said
    data = json.loads((folder / "out" / "results.json").read_text())
    for network in data["networks"]:
        summary = folder / "out" / f"{network['network']}-seed17" / "summary.json"
        found = json.loads(summary.read_text())
        assert (found["macs"], found["parameters_after"]) == (
            network["macs"],
            network["parameters"],
        )
        assert found["metrics"]["accuracy"] == network["accuracy"]
    within = [network for network in data["networks"] if network["within_budget"]]
    best = next(network for network in within if network["network"] == data["best"])
    assert best["accuracy"] == max(network["accuracy"] for network in within)

    assert invoke(*command[1:]) == 0
    assert summaries(folder / "out") == after

    # Another learning rate belongs into another folder.
    assert invoke(*command[1:], "optimizer.lr=0.5") == 2
    assert "was started with another config: optimizer" in capfd.readouterr().err


@pytest.mark.slow
def test_a_candidate_that_fails_does_not_stop_the_others(folder, capfd):
    out = folder / "out"
    # One candidate alone finds a checkpoint that is none.
    (out / "d1.000-w1.414-r1.000-seed17").mkdir(parents=True)
    (out / "d1.000-w1.414-r1.000-seed17" / "latest-rank0.pt").write_text("no checkpoint")
    assert invoke(*SCALE, "--out", "out", "--phi", "1") == 1
    assert capfd.readouterr().out.count("failed: see") == 1
    assert len(summaries(out)) == 3
    assert ">failed<" in (out / "scaling.html").read_text()
