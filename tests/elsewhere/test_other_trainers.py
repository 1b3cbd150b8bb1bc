"""The blocks of docs/elsewhere.md that need packages of their own; test_readme.py runs the rest."""

import re

import pytest

from tests.commands import ROOT, run

PAGE = (ROOT / "docs" / "elsewhere.md").read_text()
BLOCKS = dict(re.findall(r'^```python title="(.+?)"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE))


def test_the_page_has_a_block_for_each_package():
    packages = {title.partition(",")[0] for title in BLOCKS}
    assert packages == {
        "lightning",
        "accelerate",
        "segmentation_models_pytorch",
        "monai",
        "ultralytics",
    }
    assert len(re.findall(r"^```python\n", PAGE, re.MULTILINE)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("title", BLOCKS)
def test_a_block_runs_as_printed(title, tmp_path):
    pytest.importorskip(title.partition(",")[0])
    done = run("python", "-c", BLOCKS[title], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
