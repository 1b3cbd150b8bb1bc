"""What README.md and docs/ print, run as printed."""

import re
import shutil

import pytest

from composer_attn.runs.components.config_check import load_checked
from tests.commands import ROOT, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list:
    """List the code blocks of a language in all pages, once each, by page and number."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    found = {}
    for page in PAGES:
        for number, block in enumerate(pattern.findall(page.read_text())):
            found.setdefault(block, f"{page.name}-{number}")
    return [pytest.param(block, id=name) for block, name in found.items()]


def test_pages_have_blocks_of_each_kind():
    assert len(blocks("python")) >= 5
    assert len(blocks("yaml")) >= 3
    assert len(blocks("bash")) >= 4


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_as_printed(code, tmp_path):
    done = run("python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_valid_configs(text, tmp_path):
    shutil.copytree(ROOT / "yamls", tmp_path / "yamls")
    if "base:" not in text:
        text = f"base: digits_plain.yaml\n{text}"
    (tmp_path / "yamls" / "printed.yaml").write_text(text)
    config = load_checked(tmp_path / "yamls" / "printed.yaml")
    assert config.algorithms or config.model["attention"]


@pytest.mark.parametrize(
    "command", [param for param in blocks("bash") if ".venv" not in param.values[0]]
)
def test_bash_blocks_run_as_printed(command, tmp_path):
    """On two ranks where the page says eight; installing commands are .ci/run's."""
    shutil.copytree(ROOT / "yamls", tmp_path / "yamls")
    command = command.replace("composer -n 8", "composer -n 2").strip()
    if command.startswith("composer -n 2"):
        command += " max_duration=2ba"
    done = run("bash", "-euc", command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def test_links_between_pages_lead_somewhere():
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    ]
    assert links
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
