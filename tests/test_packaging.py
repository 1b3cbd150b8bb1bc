"""What is declared in pyproject.toml, compared with what is imported; and torch alone."""

import ast
import re
import sys
from functools import lru_cache

import pytest
import yaml

import composer_attn
from composer_attn.extras import _EXTRAS
from tests.alone import alone, importable, normalized, owners
from tests.commands import ROOT, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

# The extra that a part of the package needs: the longest path that a file begins with counts.
NEEDS = {
    "composer_attn": None,
    "composer_attn/algorithms": "composer",
    "composer_attn/callbacks": "composer",
    "composer_attn/cli": "runs",
    "composer_attn/functional/files": "safetensors",
    "composer_attn/heatmaps": "heatmaps",
    "composer_attn/runs": "runs",
    "composer_attn/runs/benchmark": "report",
    "composer_attn/runs/benchmark/variants": "export",
    "composer_attn/runs/heatmaps": "report",
    "composer_attn/runs/report": "report",
    "composer_attn/runs/scaling": "report",
    "composer_attn/runs/data/digits": "demo",
    "composer_attn/runs/inference/onnx": "export",
    "composer_attn/runs/inference/onnx_int8": "quantize",
    "composer_attn/runs/inference/openvino": "openvino",
    "composer_attn/runs/data/mds": "streaming",
    "composer_attn/runs/data/loader": "streaming",
    "composer_attn/runs/models": "timm",
    "composer_attn/runs/models/detection/average_precision": "detection",
    "composer_attn/runs/models/detection/keypoint_precision": "detection",
    "composer_attn/runs/data/detection/outlines": "detection",
    "benchmarks": "dev",
    "tests": "dev",
}
# Functions that import what their first argument names.
IMPORTING = r"\b(import_module|importorskip)$"
# Not declared: torch brings Triton where there is a GPU for it.
BROUGHT_BY_TORCH = {"triton"}
# Declared for what they do, not to be imported.
TOOLS = {
    "build", "mypy", "onnx", "onnxscript", "pytest-xdist", "ruff", "tensorboard", "twine",
    "types-pyyaml",
}  # fmt: skip


def names(requirements: list[str]) -> set[str]:
    return {normalized(re.match(r"[\w.-]+", line)[0]) for line in requirements}


def declared(extra: str | None) -> set[str]:
    """List the distributions that an installation with an extra asks for, itself included."""
    found, waiting = names(PROJECT["dependencies"]), list(EXTRAS[extra]) if extra else []
    while waiting:
        line = waiting.pop()
        own = re.match(r"composer-attn\[(.*)\]", line)
        if own:
            waiting += [line for name in own[1].split(",") for line in EXTRAS[name]]
        else:
            found |= names([line])
    return found


def extra_of(path: str) -> str | None:
    return NEEDS[max((part for part in NEEDS if path.startswith(part)), key=len)]


@lru_cache
def modules_in(path: str) -> frozenset[str]:
    """List the top-level modules of others that a file imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and re.search(IMPORTING, ast.unparse(node.func)):
            given = node.args[0]
            if isinstance(given, ast.Constant):
                modules.add(given.value.partition(".")[0])
    own = {"composer_attn", "tests", "benchmarks"}
    standard = {*sys.stdlib_module_names, "tomllib"}  # since Python 3.11, where alone it is used
    return frozenset(modules - standard - own - BROUGHT_BY_TORCH)


def imported(path: str) -> set[str]:
    """List the distributions that a file imports from."""
    return {min(owners().get(module, {module})) for module in modules_in(path)}


FILES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("composer_attn", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_every_direct_import_is_declared_in_the_extra_that_needs_it():
    assert len(FILES) > 150
    undeclared = {path: imported(path) - declared(extra_of(path)) for path in FILES}
    assert {path: missing for path, missing in undeclared.items() if missing} == {}


@pytest.mark.parametrize("extra", [None, *(name for name in EXTRAS if name != "docs")])
def test_everything_that_is_declared_is_imported(extra):
    used = set().union(*(imported(path) for path in FILES))
    own = names(PROJECT["dependencies"] if extra is None else EXTRAS[extra]) - {"composer-attn"}
    assert own - used - TOOLS == set()


def test_the_extras_name_one_another_and_nothing_unknown():
    for line in [line for lines in EXTRAS.values() for line in lines]:
        own = re.match(r"composer-attn\[(.*)\]", line)
        assert not own or set(own[1].split(",")) <= set(EXTRAS)
    assert declared("demo") < declared("dev")
    assert declared("composer") < declared("runs") < declared("report") < declared("demo")
    users = [name for name in EXTRAS if name not in ("dev", "docs")]
    assert set().union(*map(declared, users)) == declared("all")


def test_the_message_names_an_extra_that_brings_what_is_missing():
    for module, extra in _EXTRAS.items():
        # Of what is not installed here, distribution and module have one name.
        assert owners().get(module, {module}) & declared(extra), module
    package = [path for path in FILES if path.startswith("composer_attn/")]
    used = set().union(*(modules_in(path) for path in package))
    assert used - set(_EXTRAS) <= importable()


def test_there_is_one_version():
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", composer_attn.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(composer_attn.__version__)}\]", changes, re.MULTILINE)


WORKS_ALONE = """
import torch
from torch import nn
import composer_attn as attn

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
    )

x = torch.randn(2, 3, 12, 12)
for apply, plan in ((attn.apply_squeeze_excite, attn.plan_squeeze_excite),
                    (attn.apply_eca, attn.plan_eca)):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = model(x)
    assert plan(model, min_channels=8, example=x).attended.parameters > 0
    assert len(apply(model, min_channels=8, start="identity", optimizers=optimizer).chosen) == 2
    assert len(attn.fuse_attention(model, backend="reference").fused) == 2
    torch.testing.assert_close(model(x), plain)
    model(x).sum().backward()
    optimizer.step()
    model.eval()
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    torch.save(model.state_dict(), "weights.pt")
    attn.load_weights(model, "weights.pt")
    assert attn.unfuse_attention(model) == ["0", "3"]
    assert list(attn.detach_attention(model, optimizers=optimizer)) == ["0", "3"]
print("worked")
"""


def test_the_functions_fusion_and_export_work_with_torch_alone(tmp_path):
    done = run(*alone(WORKS_ALONE), cwd=tmp_path)
    assert done.stdout == "worked\n", done.stderr


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("SqueezeExcite", "a Composer algorithm"),
        ("ECA", "a Composer algorithm"),
        ("ExcitationMonitor", "a Composer callback"),
    ],
)
def test_what_needs_composer_says_so_in_one_line(name, user, tmp_path):
    done = run(*alone(f"from composer_attn import {name}"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "composer_attn.errors.MissingExtraError: "
        f"{user} needs composer: pip install 'composer-attn[composer]'"
    )
    assert "During handling" not in done.stderr
    assert "direct cause" not in done.stderr


@pytest.mark.parametrize(
    "start",
    [
        "from composer_attn.__main__ import main; main()",
        "import runpy; runpy.run_module('composer_attn', run_name='__main__')",
    ],
)
def test_the_command_says_in_one_line_what_to_install(start, tmp_path):
    done = run(*alone(start), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "composer-attn: this command needs typer: pip install 'composer-attn[runs]'\n"
    )


def test_the_public_names_are_listed_with_torch_alone(tmp_path):
    done = run(*alone("import composer_attn; print(*dir(composer_attn))"), cwd=tmp_path)
    assert {"SqueezeExcite", "apply_eca", "__version__"} <= set(done.stdout.split()), done.stderr


def test_the_script_is_the_module_s():
    assert PROJECT["scripts"] == {"composer-attn": "composer_attn.__main__:main"}


def test_the_citation_is_of_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == composer_attn.__version__
    assert citation["license"] == PROJECT["license"]
    assert [paper["url"] for paper in citation["references"]] == [
        url for url in PROJECT["urls"].values() if "arxiv" in url
    ]
