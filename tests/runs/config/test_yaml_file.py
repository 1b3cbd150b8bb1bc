"""YAML from strangers: plain data of a sane size; and names that stay where they belong."""

import tracemalloc

import pytest

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import find_mistakes
from composer_attn.runs.config.schema import RunConfig, load_config
from composer_attn.runs.config.yaml_file import read_yaml


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


REFUSED = {
    "code": ("run_name: !!python/object/apply:os.system [touch attacked]", "is not plain YAML"),
    "a new object": ("run_name: !!python/object/new:os.path.join [a]", "is not plain YAML"),
    "a module": ("run_name: !!python/module:antigravity x", "is not plain YAML"),
    "a billion laughs": (laughs(9), "holds more than 10,000 values, with aliases expanded"),
    "an alias of itself": ("a: &a [*a]", r"\*a refers to a node that contains it"),
    "merged laughs": (
        "a: &a {x: 1, y: 2}\nb: {<<: [" + ", ".join(["*a"] * 9000) + "]}",
        "holds more than 10,000 values",
    ),
    "deep flow": ("model: " + "[" * 100_000, "is nested deeper than 20 levels"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(50)), "is nested deeper than 20"),
    "a large file": ("# " + "x" * 1_000_000, "is larger than 1,000,000 bytes"),
}


@pytest.mark.parametrize(("text", "says"), REFUSED.values(), ids=REFUSED)
def test_yaml_that_no_run_has_is_one_mistake(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    tracemalloc.start()
    with pytest.raises(ConfigError, match=rf"^run\.yaml: .*{says}"):
        load_config("run.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_few_aliases_are_read_as_what_they_stand_for(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train_dataset: &data {name: digits}\neval_dataset: *data\n")
    assert read_yaml(file) == file.read_text()
    assert load_config(file).config.eval_dataset == {"name": "digits"}


def test_a_long_chain_of_files_is_refused(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="more than 20 files that build on one another"):
        load_config(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["../out", "a/../../b", "/out", "", " ", "a\nb", "a\0b"])
def test_a_run_name_that_leads_out_of_its_folder_is_a_mistake(name):
    found = [str(m) for m in find_mistakes(RunConfig(run_name=name)) if m.key == "run_name"]
    assert len(found) == 1
    assert "must be a relative path without .." in found[0]


@pytest.mark.parametrize("path", ["a.tar", "a.tar.gz", "s3://bucket/a.tgz", "a.pt.gz"])
def test_archives_that_composer_would_unpack_are_refused(path):
    found = [str(m) for m in find_mistakes(RunConfig(load_path=path)) if m.key == "load_path"]
    assert found == [f"load_path: must be a plain .pt file: unpack {path!r} first"]
