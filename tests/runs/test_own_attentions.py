"""A project's own attentions by their names: in YAML, plans, studies, reports, and --import."""

import json
import shutil

import pytest
import yaml

from composer_attn.attention import attention_names, register_attention
from composer_attn.errors import ArgumentError, CheckpointError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.project_imports import import_modules
from composer_attn.runs.components.registry import ALGORITHMS
from composer_attn.runs.components.variants import attention_of, make_variants
from composer_attn.runs.planning.network_plan import make_plan, parse_arguments
from composer_attn.runs.planning.plan_report import as_json
from composer_attn.runs.report.records import Record
from composer_attn.runs.training.build import build_parts
from composer_attn.runs.training.train import train
from tests.commands import ROOT, invoke, run
from tests.own_attentions import each_own, import_printed, own, printed

__all__ = ["own"]

CONFIG = """
run_name: small
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 2ba
save_interval: 1ba
device: cpu
algorithms: {simam: {min_channels: 256, regularization: 0.001}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads the config above with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def test_a_run_names_it_saves_it_and_resumes(own, config):
    summary = train(config())
    assert summary.attended_layers == 6
    assert summary.parameters_after == summary.parameters_before
    again = train(config("max_duration=3ba", "autoresume=true"))
    assert again.attended_layers == 6


def test_a_checkpoint_of_one_that_is_not_imported_is_refused(own, config, registry, tmp_path):
    train(config("max_duration=1ba"))
    registry._registered.pop("simam")
    (tmp_path / "run.yaml").write_text(CONFIG[: CONFIG.index("algorithms")])
    with pytest.raises(CheckpointError, match="that is unknown here: unknown attention 'simam'"):
        train(config("load_path=runs/small/latest-rank0.pt"))


def test_a_run_with_it_starts_from_a_checkpoint_made_without_attention(own, config, tmp_path):
    text = CONFIG[: CONFIG.index("algorithms")]
    (tmp_path / "run.yaml").write_text(text.replace("small", "plain"))
    train(load_checked("run.yaml"))
    (tmp_path / "run.yaml").write_text(
        CONFIG.replace("simam: {", "effective_se: {").replace(
            ", regularization: 0.001", ", start: identity"
        )
    )
    summary = train(load_checked("run.yaml", ["load_path=runs/plain/latest-rank0.pt"]))
    assert summary.attended_layers == 6


def test_the_group_of_an_optimizer_without_decay_and_the_order_hold_for_it_too(own, config):
    parts = build_parts(config("algorithms.blurpool.min_channels=64"))
    assert [type(a).__name__ for a in parts.algorithms] == ["BlurPool", "ComposerAttnAttention"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{simma: {}}", r"unknown algorithm 'simma'; did you mean 'simam'\?"),
        (
            "{simam: {regularisation: 1}}",
            "unknown argument of simam 'regularisation'; did you mean",
        ),
        ("{simam: {regularization: a lot}}", "must be float; got 'a lot'"),
        ("{simam: {placement: 3}}", "placement: must be str; got 3"),
        ("{simam: {filter_fn: 3}}", "unknown argument of simam 'filter_fn'"),
        ("{simam: {min_channels: 0}}", "algorithms.simam: min_channels must be a whole number"),
        ("{effective_se: {gate: soft}}", "algorithms.effective_se: gate must be one of sigmoid"),
        ("{needs: {}}", "algorithms.needs: needs needs the argument 'size'"),
        ("{ema: {}}", "'ema' is an algorithm of Composer's and a registered attention"),
    ],
)
def test_mistakes_are_reported_before_anything_is_built(own, config, tmp_path, section, says):
    register_attention("needs", lambda channels, size: None)
    register_attention("ema", lambda channels: None)
    content = yaml.safe_load(CONFIG) | {"algorithms": yaml.safe_load(section)}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=says):
        load_checked("bad.yaml")


def test_the_tables_of_names_are_those_of_the_registry(own):
    assert {"simam", "eca", "blurpool", "composer_squeeze_excite"} <= set(ALGORITHMS.table)
    register_attention("late", lambda channels: None)
    assert "late" in ALGORITHMS.table
    assert set(ALGORITHMS.table) >= set(attention_names())


@each_own
def test_it_is_planned_by_its_name(own, name):
    planned = make_plan("resnet10", name, {"min_channels": 512}, "3x32x32")
    assert planned.algorithm == name
    assert len(planned.plan.chosen) == 3
    assert planned.plan.attended.parameters - planned.plan.plain.parameters == (
        planned.plan.parameters
    )
    site = json.loads(as_json(planned))["sites"][-1]
    sized = ("latent_channels", 32) if name == "cbam_channel" else ("", None)
    assert (site["sized_by"], site["width"]) == sized


def test_a_plan_takes_it_from_a_run_and_its_arguments_by_name(own, config):
    config()
    planned = make_plan("run.yaml", None, {})
    assert (planned.algorithm, planned.arguments["regularization"]) == ("simam", 0.001)
    found = parse_arguments(["regularization=0.01", "include=layer4.*", "a=[1, x]"])
    assert found == {"regularization": 0.01, "include": "layer4.*", "a": [1, "x"]}
    for text in ("regularization", "=3", "a b=3", "a=[1"):
        with pytest.raises(ArgumentError, match="arguments must be NAME=VALUE"):
            parse_arguments([text])


def test_what_a_run_has_of_fusion_is_no_business_of_a_plan(tmp_path):
    text = CONFIG.replace("simam: {min_channels: 256, regularization: 0.001}", "eca: {fuse: false}")
    (tmp_path / "run.yaml").write_text(text)
    assert make_plan(str(tmp_path / "run.yaml"), None, {}).plan.chosen


def test_a_study_compares_it(own, config, tmp_path):
    variants = make_variants(config(), ["plain", "simam", "effective_se"], 1, tmp_path)
    algorithms = {v.name: v.config.algorithms for v in variants}
    assert algorithms["plain"] == {}
    assert algorithms["simam"] == {"simam": {"min_channels": 256, "regularization": 0.001}}
    assert algorithms["effective_se"] == {"effective_se": {}}
    assert "excitation_monitor" in variants[1].config.callbacks


def test_a_report_includes_unregistered_attentions(tmp_path):
    algorithms = {"simam": None, "blurpool": {}, "composer_squeeze_excite": {}}
    assert attention_of(algorithms) == {"simam": {}, "composer_squeeze_excite": {}}
    record = Record(tmp_path, {"algorithms": {"simam": {}, "ema": {}}}, None, (), None)
    assert record.variant == "simam"


# As a stranger does it, from an empty folder, as the page says.


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The page's file in a folder, beside our recipes."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("my_attention.py", "run.yaml", "train.py"):
        (folder / name).write_text(printed()[name])
    shutil.copytree(ROOT / "yamls", folder / "yamls")
    return folder


def test_the_page_s_commands_run_as_printed(project):
    commands = printed()["shell"].splitlines()
    assert len(commands) == 3
    for command in commands:
        done = run("bash", "-euc", command, cwd=project, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    done = run("python", "train.py", cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EffectiveSE: ")
    page = (project / "runs" / "digits_study" / "report.html").read_text()
    assert "effective_se" in page


def test_a_run_that_is_asked_to_stop_says_how_to_go_on_with_its_imports():
    from composer_attn.cli import training as cli

    cli.imported[:] = ["my_attention"]
    try:
        again = cli._again("run.yaml", ["autoresume=false"], "runs/x")
    finally:
        cli.imported.clear()
    assert again == (
        "composer-attn --import my_attention train run.yaml save_folder=runs/x autoresume=true"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "ModuleNotFoundError: No module named 'project_attention'"),
        ("raise ValueError('mine')", "ValueError: mine"),
        ("import composer_attn\ncomposer_attn.register_attention('eca', dict)", "'eca' is already"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line_and_an_exit_code(
    text, says, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if text:
        (tmp_path / "project_attention.py").write_text(text)
    assert invoke("--import", "project_attention", "validate", "run.yaml") == 2
    error = capfd.readouterr().err
    assert error.startswith("composer-attn: --import project_attention: ")
    assert says in error
    assert len(error.splitlines()) == 1
    with pytest.raises(ArgumentError, match="takes the name of a module"):
        import_modules(["project_attention"])


def test_effective_se_is_one_file_and_one_line_of_the_package(tmp_path):
    package = tmp_path / "composer_attn"
    shutil.copytree(ROOT / "composer_attn", package, ignore=shutil.ignore_patterns("__pycache__"))
    text = printed()["my_attention.py"].replace(
        "from composer_attn import ChannelAttention, register_attention",
        "from composer_attn.attention.base import ChannelAttention\n"
        "from composer_attn.attention.registry import register_attention",
    )
    (package / "attention" / "effective_se.py").write_text(text)
    line = printed()["composer_attn/attention/__init__.py"]
    assert len(line.splitlines()) == 1
    init = package / "attention" / "__init__.py"
    init.write_text(init.read_text() + line)
    code = (
        "import sys; sys.path.insert(0, '.'); import composer_attn; "
        "from composer_attn.cli import app; "
        "assert composer_attn.__file__.startswith(sys.argv.pop(1)); app()"
    )
    arguments = ("plan", "resnet18", "--algorithm", "effective_se", "--image", "3x32x32")
    done = run("python", "-c", code, str(tmp_path), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resnet18, effective_se" in done.stdout
    assert "15 of 20 candidates chosen" in done.stdout


def test_the_file_in_a_project_is_found_by_import_in_this_process(registry, tmp_path):
    assert "effective_se" not in attention_names()
    import_printed("effective_se", tmp_path)
    assert "effective_se" in attention_names()
