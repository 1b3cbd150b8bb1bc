"""What README prints passes a type checker, as a user's own code that imports the package."""

import re
import sys

import pytest

from tests.commands import ROOT, run

SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)

WRONG = """
from torch import nn
from composer_attn import apply_eca
apply_eca(nn.Identity(), kernel=3)
apply_eca(nn.Identity()).chosn
reveal_type(apply_eca(nn.Identity()).parameters)
"""


@pytest.mark.slow
def test_readme_s_code_passes_and_wrong_code_does_not(tmp_path):
    pytest.importorskip("mypy")
    assert len(SNIPPETS) > 3
    files = {f"snippet_{number}.py": code for number, code in enumerate(SNIPPETS)}
    for name, code in (files | {"wrong.py": WRONG}).items():
        (tmp_path / name).write_text(code)
    options = ["--follow-imports=silent", "--ignore-missing-imports", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(tmp_path / "cache")]
    checked = run(*command, *files, "wrong.py", cwd=tmp_path, timeout=1200)
    lines = checked.stdout.splitlines()
    assert [line for line in lines if not line.startswith("wrong.py:")] == [], checked.stderr
    found = [line.split(": ", 2)[2] for line in lines if ": error: " in line]
    assert found[0].startswith('Unexpected keyword argument "kernel" for "apply_eca"')
    assert found[1].startswith('"SurgeryPlan" has no attribute "chosn"')
    assert len(found) == 2
    assert re.search(r'Revealed type is "(builtins\.)?int"', checked.stdout)
