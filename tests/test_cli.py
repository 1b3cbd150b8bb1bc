"""The command line, as a user runs it: exit codes, what is printed where."""

import json

from tests.commands import ROOT, launch, run

CONFIG = """
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 32}
eval_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 8
max_duration: 2ep
device: cpu
algorithms: {squeeze_excite: {min_channels: 256}, eca: {include: layer2.*}}
"""


def test_help_names_the_verbs_without_loading_torch(tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from composer_attn.cli import app;"
        "result = CliRunner().invoke(app, ['--help']); print(result.output);"
        "assert result.exit_code == 0; assert not {'torch', 'composer'} & set(sys.modules)"
    )
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_mistakes_go_to_stderr_with_exit_code_2(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = run("composer-attn", "train", "run.yaml", "seed=x", "optimizer.lr_=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("composer-attn: command line: seed: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_two_ranks_train_and_one_reports(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = launch(2, "-m", "composer_attn", "train", "run.yaml", "run_name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("attended layers") == 1
    assert "do not match bucket view strides" not in done.stderr
    summary = json.loads((tmp_path / "runs/two/summary.json").read_text())
    assert summary["attended_layers"] == 9
    alone = run("python", "-m", "composer_attn", "train", "run.yaml", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    single = json.loads((tmp_path / "runs/run/summary.json").read_text())
    # Batch norm sees half of each batch: not the same numbers, but the same network and data.
    assert summary["parameters_after"] == single["parameters_after"]
    assert abs(summary["metrics"]["cross_entropy"] - single["metrics"]["cross_entropy"]) < 1


def test_a_batch_that_ranks_cannot_share_ends_all_ranks(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = launch(2, "-m", "composer_attn", "train", "run.yaml", "batch_size=7", cwd=tmp_path)
    assert done.returncode != 0
    assert "batch_size must be a multiple of the 2 ranks; got 7" in done.stderr + done.stdout


def test_recipes_open_with_the_command_that_runs_them():
    recipes = sorted((ROOT / "yamls").glob("*.yaml"))
    assert len(recipes) >= 3
    for recipe in recipes:
        first = recipe.read_text().splitlines()[0]
        assert first == f"# composer-attn train yamls/{recipe.name}"
