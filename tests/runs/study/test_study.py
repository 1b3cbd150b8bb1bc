"""Studies: variants of one recipe, resumed where they stopped, refused where they make no sense."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.variants import attentions, make_variants
from composer_attn.runs.study.study import digits_recipe, study
from tests.commands import ROOT, invoke, run, start

RECIPE = """
run_name: small_plain
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 32}
eval_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 8
max_duration: 2ep
device: cpu
algorithms: {eca: {min_channels: 256}, label_smoothing: {smoothing: 0.1}}
callbacks: {excitation_monitor: {interval: 1ba}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads the recipe above with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *overrides: load_checked("recipe.yaml", list(overrides))


def test_variants_differ_in_their_attention_alone(config):
    names = ["plain", "squeeze_excite", "eca"]
    variants = make_variants(config(), names, 2, Path("out"))
    assert [(v.name, v.seed) for v in variants] == [(n, s) for s in (17, 18) for n in names]
    first = {v.name: v.config for v in variants[:3]}
    assert first["plain"].algorithms == {"label_smoothing": {"smoothing": 0.1}}
    assert first["squeeze_excite"].algorithms["squeeze_excite"] == {}
    assert first["eca"].algorithms["eca"] == {"min_channels": 256}  # as the recipe has it
    assert first["plain"].callbacks == {}
    assert first["eca"].callbacks == {"excitation_monitor": {"interval": "1ba"}}
    for variant in variants:
        own = variant.config
        assert own.seed == variant.seed
        assert own.autoresume
        assert own.save_folder == f"out/{variant.name}-seed{variant.seed}"
        assert own.run_name == f"small_{variant.name}_seed{variant.seed}"
        for key in ("model", "train_dataset", "optimizer", "batch_size", "max_duration"):
            assert getattr(own, key) == getattr(config(), key)


@pytest.mark.parametrize("name", attentions())
def test_every_attention_can_be_a_variant(config, name):
    variant = make_variants(config(), [name], 1, Path("out"))[0]
    assert list(variant.config.algorithms) == ["label_smoothing", name]


@pytest.mark.parametrize(
    ("names", "seeds", "says"),
    [
        (["plain", "squeeze"], 1, r"unknown variant 'squeeze'; did you mean 'squeeze_excite'\? "
         "Valid: composer_squeeze_excite, eca, plain, squeeze_excite"),
        (["plain", "plain"], 1, "different names; got 'plain,plain'"),
        ([], 1, "variants must be different names"),
        (["plain"], 0, "seeds must be a whole number >= 1; got 0"),
    ],
)  # fmt: skip
def test_variants_that_make_no_sense_are_refused(config, tmp_path, names, seeds, says):
    with pytest.raises(ArgumentError, match=says):
        study(config(), names, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_of_a_variant_are_found_before_anything_is_trained(config, tmp_path):
    bad = config()
    bad.algorithms["eca"] = {"kernel_size": 4}
    with pytest.raises(ConfigError, match=r"algorithms.eca: kernel_size"):
        study(bad, ["plain", "eca"], 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_within_a_launcher_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="composer-attn study --ranks N"):
        study(config(), ["plain"], 1, tmp_path / "out")


def test_the_command_refuses_before_training(config, tmp_path, capfd):
    config()
    assert invoke("study", "recipe.yaml", "--variants", "plain,cbam") == 2
    assert "unknown variant 'cbam'" in capfd.readouterr().err
    assert invoke("study", "recipe.yaml", "other.yaml") == 2
    assert "takes one recipe; got recipe.yaml, other.yaml" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_a_recipe_it_is_the_digits_also_outside_of_a_checkout(monkeypatch, tmp_path):
    assert digits_recipe() == ROOT / "yamls" / "digits_plain.yaml"
    from composer_attn.runs.study import study as module

    inside = tmp_path / "site" / "composer_attn" / "runs" / "study" / "study.py"
    monkeypatch.setattr(module, "__file__", str(inside))
    assert digits_recipe() == tmp_path / "site/composer_attn/recipes/digits_plain.yaml"
    assert '"composer_attn/recipes/digits_plain.yaml"' in (ROOT / "pyproject.toml").read_text()


def states(folder: Path) -> dict[str, tuple[float, int]]:
    """Return when each run's summary was written, and how many epochs its history has."""
    return {
        run.name: ((run / "summary.json").stat().st_mtime, epochs(run))
        for run in sorted(folder.iterdir())
        if (run / "summary.json").is_file()
    }


def epochs(run: Path) -> int:
    file = run / "history.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(json.loads(line)["kind"] == "train" for line in lines)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [line["figures"]["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_trains_nothing_twice(config, tmp_path, capfd):
    config()
    command = ("composer-attn", "study", "recipe.yaml", "max_duration=40ep", "--out", "out",
               "--variants", "plain,eca")  # fmt: skip
    process = start(*command, cwd=tmp_path)
    eca = tmp_path / "out" / "eca-seed17"
    deadline = time.monotonic() + 300
    while epochs(eca) < 2:  # the second variant is under way
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    # While it runs, no other may train the same.
    with pytest.raises(ConfigError, match="is still training in out"):
        study(config("max_duration=40ep"), ["plain", "eca"], 1, Path("out"))
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "run the same command again to continue" in said
    before = states(tmp_path / "out")
    assert list(before) == ["plain-seed17"]
    assert not (tmp_path / "out" / "report.html").exists()

    assert invoke(*command[1:]) == 0
    after = states(tmp_path / "out")
    assert after["plain-seed17"] == before["plain-seed17"]
    assert list(after) == ["eca-seed17", "plain-seed17"]
    # It went on from its last checkpoint: of all epochs it trained one again, at most.
    assert 40 <= epochs(eca) <= 41
    assert (tmp_path / "out" / "report.html").is_file()

    assert invoke(*command[1:]) == 0
    assert states(tmp_path / "out") == after

    # The same as without an interruption, and by itself.
    assert invoke("train", "out/eca-seed17/config.yaml", "save_folder=alone") == 0
    assert losses(tmp_path / "alone")[-1] == losses(eca)[-1]

    capfd.readouterr()
    assert invoke(*command[1:3], "optimizer.lr=0.5", *command[4:]) == 2
    said = capfd.readouterr().err
    assert "out/plain-seed17: was started with another config: optimizer" in said


@pytest.mark.slow
def test_a_variant_that_fails_does_not_stop_the_others(config, tmp_path, capfd):
    config()
    # Found only in the first step: images of no size.
    broken = RECIPE.replace("size: 32}", "size: 0}").replace("small_plain", "broken")
    (tmp_path / "broken.yaml").write_text(broken)
    assert invoke("study", "broken.yaml", "--variants", "plain,eca") == 1
    assert capfd.readouterr().out.count("failed: see") == 2
    log = tmp_path / "runs" / "broken_study" / "eca-seed17" / "train.log"
    assert "Kernel size can't be greater" in log.read_text()
    assert (
        "has neither a summary nor a training history"
        in (tmp_path / "runs/broken_study/report.html").read_text()
    )


@pytest.mark.slow
def test_runs_can_have_several_processes(config, tmp_path):
    config()
    amounts = ("max_duration=1ep", "--variants", "eca", "--ranks", "2")
    assert invoke("study", "recipe.yaml", *amounts) == 0
    summary = tmp_path / "runs" / "small_study" / "eca-seed17" / "summary.json"
    assert json.loads(summary.read_text())["ranks"] == 2


@pytest.mark.slow
def test_the_digits_study_compares_three_variants(tmp_path):
    done = run("composer-attn", "study", "max_duration=1ep", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "runs" / "digits_study"
    rows = json.loads((out / "results.json").read_text())["variants"]
    assert [row["variant"] for row in rows] == ["plain", "squeeze_excite", "eca"]
    assert [row["parameters"] for row in rows] == [4_910_922, 5_254_986, 4_910_967]
    assert [row["attended_layers"] for row in rows] == [0, 9, 9]
    assert "squeeze_excite, seed 17: done, epoch 1" in done.stdout
    assert f"report: {Path('runs/digits_study/report.html')}" in done.stdout
    resolved = yaml.safe_load((out / "eca-seed17" / "config.yaml").read_text())
    assert resolved["callbacks"] == {"excitation_monitor": {}}
    assert len(list((out / "plots").glob("excitation*.svg"))) == 1 + 2 * 3


@pytest.mark.slow
def test_a_study_of_segmentation_compares_mean_iou(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        f"""
base: {ROOT}/yamls/shapes_segmentation_eca.yaml
train_dataset: {{num_samples: 32, size: 32}}
eval_dataset: {{num_samples: 6, size: 32}}
batch_size: 8
max_duration: 1ep
device: cpu
"""
    )
    assert invoke("study", "recipe.yaml", "--variants", "plain,eca", "--out", "out") == 0
    told = capfd.readouterr().out
    assert "mean IoU" in told
    assert "accuracy" not in told.replace("pixel accuracy", "")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metric"] == "mean_iou"
    assert all(0 <= row["mean_iou"] <= 1 for row in results["variants"])
    assert all(row["step_seconds"] > 0 for row in results["variants"])
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("Evaluation image 1: the truth, and what is predicted") >= 1
    again = capfd.readouterr()
    assert invoke("study", "recipe.yaml", "--variants", "plain,eca", "--out", "out") == 0
    assert not again.err


@pytest.mark.slow
def test_a_study_of_detection_compares_average_precision(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        f"""
base: {ROOT}/yamls/shapes_detection_eca.yaml
model: {{min_size: 48, max_size: 48, anchor_sizes: [8, 12, 16, 24, 32], fpn_channels: 32}}
train_dataset: {{num_samples: 16, size: 48}}
eval_dataset: {{num_samples: 6, size: 48}}
batch_size: 4
max_duration: 1ep
scheduler: {{t_warmup: 0ba}}
device: cpu
"""
    )
    assert invoke("study", "recipe.yaml", "--variants", "plain,eca", "--out", "out") == 0
    told = capfd.readouterr().out
    assert "AP" in told
    assert "accuracy" not in told
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["metric"] == "map"
    assert all(0 <= row["map"] <= 1 for row in results["variants"])
    assert all(row["step_seconds"] > 0 for row in results["variants"])
    page = (tmp_path / "out/report.html").read_text()
    assert "Evaluation image 1: the truth, and what is predicted" in page
    assert "no value was computed" not in page
