"""Where one rank goes astray, all end, and the first cause is there to read."""

import os
import time

import pytest

from tests.commands import ROOT, free_port, start

# 20 of dist_timeout, 30 of grace from the launcher; the rest is starting up.
_SECONDS = 200


def launch(case: str, folder) -> tuple[int, str]:
    """Run the program on two ranks; return the exit code and all that was printed."""
    text = (ROOT / "tests" / "runs" / "ranks.py").read_text()
    (folder / "run.yaml").write_text(text.split('CONFIG = """')[1].split('"""')[0])
    os.environ["PYTHONPATH"] = str(ROOT)
    port = str(free_port())
    command = ("composer", "-n", "2", "--master_port", port, "-m", "tests.runs.ranks", case)
    process = start(*command, cwd=folder)
    printed, _ = process.communicate(timeout=_SECONDS)
    deadline = time.monotonic() + 10
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid), "processes are left"
    return process.returncode, printed


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


ASTRAY = {
    "another config": "the ranks do not agree: optimizer.lr is 0.01 on rank 0, 0.5 on rank 1",
    "another version": "version of composer-attn is 0.1.0 on rank 0, 0.0.9 on rank 1",
    "another surgery": "only on rank 0 ComposerAttnECA(",
    "killed at surgery": "Rank 1 crashed with exit code -9",
    "killed in training": "Rank 1 crashed with exit code -9",
    "killed in saving": "Rank 0 crashed with exit code -25",
    "full disk": "ep0-ba4-rank0.pt cannot be written: File too large",
    # Whichever of gloo's threads is first.
    "no answer": ("Timed out waiting", "Application timeout"),
}
FAST = "another config"


@pytest.mark.parametrize(
    ("case", "says"),
    [pytest.param(*it, marks=[] if it[0] == FAST else pytest.mark.slow) for it in ASTRAY.items()],
    ids=ASTRAY,
)
def test_all_ranks_end_and_say_why(case, says, tmp_path):
    code, printed = launch(case, tmp_path)
    assert code != 0
    causes = (says,) if isinstance(says, str) else says
    assert any(cause in " ".join(printed.split()) for cause in causes), printed
    assert len(list(tmp_path.glob("process-*"))) == 2  # both had been there


@pytest.mark.slow
def test_ranks_that_agree_come_to_the_end(tmp_path):
    code, printed = launch("none", tmp_path)
    assert code == 0, printed
    assert (tmp_path / "runs" / "small" / "summary.json").exists()
