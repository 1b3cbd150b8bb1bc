"""The command line, as a user runs it: exit codes, what is printed where."""

import json
import re
import sys

import pytest
from composer import Trainer

import composer_attn
from tests.commands import invoke, run

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


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["validate"],
        ["plan"],
        ["study"],
        ["scale"],
        ["report"],
        ["evaluate"],
        ["predict"],
        ["heatmaps"],
        ["export"],
        ["benchmark"],
    ],
)
def test_h_is_help_of_every_command(command, capfd):
    assert invoke(*command, "-h") == 0
    short = capfd.readouterr()
    assert invoke(*command, "--help") == 0
    assert capfd.readouterr() == short
    assert "Usage: composer-attn" in short.out


def test_the_version_is_that_of_the_package_and_loads_no_torch(tmp_path):
    for command in (["composer-attn"], [sys.executable, "-m", "composer_attn"]):
        done = run(*command, "--version", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"composer-attn {composer_attn.__version__}\n")
    code = (
        "import sys; from composer_attn.cli import app; app(['--version'], standalone_mode=False)"
    )
    done = run(
        "python", "-c", f"{code}; assert not {{'torch', 'composer'}} & set(sys.modules)",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_without_a_verb_the_verbs_are_listed(capfd):
    assert invoke() in (0, 2)  # as click's versions have it
    assert "validate" in "".join(capfd.readouterr())


def test_mistakes_go_to_stderr_with_exit_code_2(tmp_path):
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = run("composer-attn", "train", "run.yaml", "seed=x", "optimizer.lr_=1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    # torch 2.14 logs a line about torchao 0.18, which transformers imports for Composer.
    ours = [line for line in done.stderr.splitlines() if "torch/utils/_pytree.py" not in line]
    assert ours[0].startswith("composer-attn: command line: seed: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a config into a folder of its own, which is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")  # tables as wide as they like

    def write(text: str = CONFIG, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return name

    return write


def test_validate_says_what_is_valid_and_exits_with_0(write, capfd):
    assert invoke("validate", write(), write(CONFIG + "seed: 3\n", "other.yaml")) == 0
    assert capfd.readouterr() == ("run.yaml: valid\nother.yaml: valid\n", "")


def test_validate_reports_every_mistake_of_every_file_and_exits_with_1(write, tmp_path, capfd):
    first = CONFIG.replace("lr: 0.01", "lrr: 0.01").replace("device: cpu", "device: gpus")
    second = CONFIG.replace("name: resnet10", "name: resnet_10") + "max_duratoin: 3ep\n"
    files = [write(first, "a.yaml"), write(), "absent.yaml", write(second, "b.yaml")]
    before = sorted(tmp_path.rglob("*"))
    assert invoke("validate", *files) == 1
    out, err = capfd.readouterr()
    assert out == "run.yaml: valid\n"
    starts = [
        "a.yaml: optimizer.lrr: unknown argument of sgd 'lrr'; did you mean 'lr'? Valid: ",
        "a.yaml: device: unknown device 'gpus'; did you mean 'gpu'? Valid: cpu, gpu, mps, tpu",
        "absent.yaml: cannot be read: No such file or directory",
        "b.yaml: max_duratoin: unknown key 'max_duratoin'; did you mean 'max_duration'? Valid: ",
        "b.yaml: model.name: unknown model 'resnet_10'; did you mean 'resnet10'? Valid: ",
    ]
    assert [
        line[: len(start)] for line, start in zip(err.splitlines(), starts, strict=True)
    ] == starts
    assert sorted(tmp_path.rglob("*")) == before


def test_validate_looks_at_values_in_the_file_where_they_stand(write, capfd):
    write(CONFIG, "base.yaml")
    variant = write("base: base.yaml\noptimizer: {momentum: much}\n", "variant.yaml")
    assert invoke("validate", variant) == 1
    assert capfd.readouterr().err == "variant.yaml: optimizer.momentum: must be float; got 'much'\n"


def test_a_dry_run_shows_plan_groups_and_sizes_and_leaves_nothing(
    write, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("it trained"))
    more = """
optimizer: {name: sgd, lr: 0.01, weight_decay: 0.5, no_decay: [bias, norm, attention]}
scheduler: {name: cosine_annealing_with_warmup, t_warmup: 1ep}
loggers: {tensorboard: {}, file: {filename: logs/run.txt}}
callbacks: {checkpoint_saver: {folder: saved}, lr_monitor: {}}
"""
    file = write(CONFIG.replace("optimizer: {name: sgd, lr: 0.01, momentum: 0.9}", more))
    assert invoke("train", "--dry-run", file) == 0
    out, err = capfd.readouterr()
    rows = [[cell.strip() for cell in re.split("[│┃]", line)] for line in out.splitlines()]
    assert out.startswith("SqueezeExcitation: 6 of 12 candidates chosen, 294,912 parameters added")
    assert "\nEfficientChannelAttention: 3 of 12 candidates chosen, 15 parameters added\n" in out
    assert re.search(r"module.layer4.0.conv2 +Conv2d +512 +65,536 +yes\n", out)
    added = 294_912 + 15
    norms = sum(2 * width for width in (64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512))
    spared = norms + 10 + added
    total = 4_910_922 + added
    assert ["", "0", "0.01", "0.5", "13", f"{total - spared:,}", ""] in rows
    assert ["", "1", "0.01", "0", str(24 + 1 + 12 + 3), f"{spared:,}", ""] in rows
    sizes = {row[1]: row[2] for row in rows if len(row) == 4}
    assert sizes["parameters before"] == "4,910,922"
    assert sizes["parameters after"] == f"{total:,}"
    assert sizes["train samples"] == "16 in 2 batches per rank"
    assert sizes["batch size"] == "8 over 1 ranks"
    assert sizes["max duration"] == "2ep"
    assert "error" not in err.lower()
    assert [path.name for path in tmp_path.rglob("*")] == ["run.yaml"]


def test_a_dry_run_refuses_what_a_run_refuses(write, tmp_path, capfd):
    assert invoke("train", "--dry-run", write(), "algorithms.eca.include=nowhere.*") == 2
    assert "composer-attn: include pattern 'nowhere.*' matches none" in capfd.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["run.yaml"]


def test_a_plan_is_printed_and_exits_with_0(write, capfd):
    assert invoke("plan", write(), "--algorithm", "eca", "--batch", "2") == 0
    out, err = capfd.readouterr()
    assert out.startswith("resnet10, eca (include=layer2.*)\non 2 x 3x32x32, evaluation mode\n")
    assert "3 of 12 candidates chosen" in out
    assert "error" not in err.lower()


def test_a_plan_s_options_reach_the_function_and_json_stands_alone(write, capfd):
    options = ["--latent-channels", "1/16", "--placement", "norm", "--include", "*.bn1"]
    options += ["--include", "*.bn2", "--exclude", "layer1.*", "--bias", "--gate", "tanh"]
    options += ["--min-channels", "64", "--start", "identity", "--image", "3x64x64", "--json"]
    assert invoke("plan", "resnet10", "--algorithm", "squeeze_excite", *options) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["arguments"] == {
        "placement": "norm",
        "min_channels": 64,
        "latent_channels": 0.0625,
        "include": ["*.bn1", "*.bn2"],
        "exclude": ["layer1.*"],
        "gate": "tanh",
        "start": "identity",
        "bias": True,
    }
    chosen = [site for site in document["sites"] if site["chosen"]]
    assert [site["width"] for site in chosen] == [8, 8, 16, 16, 32, 32]
    assert document["attended"]["parameters"] - document["plain"]["parameters"] == sum(
        2 * (2 * c * (c // 16) + c + c // 16) for c in (128, 256, 512)
    )


def test_a_plan_as_csv_can_be_piped(tmp_path):
    command = "composer-attn plan resnet10 --algorithm eca --kernel-size 3 --csv | cut -d, -f1,4,8"
    done = run("bash", "-euo", "pipefail", "-c", command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["name,channels,parameters", "conv1,64,0"]
    assert lines[-1] == "layer4.0.downsample.0,512,3"
    assert len(lines) == 1 + 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet5", "--algorithm", "eca"], "there is no model, and no file, named 'resnet5'"),
        (["resnet10", "--algorithm", "cbam"], "unknown algorithm 'cbam'"),
        (["resnet10", "--algorithm", "eca", "--image", "224"], "image must be CHANNELSxHEIGHTx"),
        (["resnet10", "--algorithm", "eca", "--include", "nix"], "include pattern 'nix' matches"),
        (["resnet10", "--algorithm", "eca", "--json", "--csv"], "--json and --csv cannot be"),
        (["resnet10", "--algorithm", "eca", "--kernel-size", "a"], "kernel_size must be an odd"),
        (["nix", "--algorithm", "eca", "--include", "a", "--latent-channels", "0.."], "latent_cha"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line_and_exits_with_2(arguments, said, capfd):
    assert invoke("plan", *arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"composer-attn: {said}")
    assert err.count("\n") == 1
