"""What ends a run from outside: signals, full disks, lost rights. Each says so once, and how."""

import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands import ROOT

CONFIG = """
run_name: small
model: {name: shufflenet_v2_x0_5, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
batch_size: 4
max_duration: 1000ep
save_interval: 500ep
device: cpu
algorithms: {eca: {min_channels: 256}}
"""
PROGRAM = "from composer_attn.cli import app; app()"


@pytest.fixture
def start(tmp_path):
    """Return a function that starts ``composer-attn train run.yaml`` in a process of its own."""
    started = []
    (tmp_path / "run.yaml").write_text(CONFIG)

    def run(*overrides, **options) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", PROGRAM, "train", "run.yaml", *overrides],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "stderr").open("w"),
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def until(found, timeout: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def training(folder: Path):
    """Return a function that says whether the run in a folder has trained some batches."""
    return lambda: re.search(r"Epoch +[5-9]:", (folder / "stderr").read_text()) is not None


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_first_signal_saves_and_says_how_to_go_on(number, code, start, tmp_path):
    process = start()
    until(training(tmp_path))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    said = re.search(
        rf"stopped by {number.name} after batch (\d+), saved in runs/small\nResume with: (.*)", out
    )
    assert said[2] == "composer-attn train run.yaml save_folder=runs/small autoresume=true"
    complaint = (tmp_path / "stderr").read_text()
    assert f"composer-attn: {number.name}: saving after this batch; repeat to" in complaint
    assert "Traceback" not in complaint
    saved = torch.load(tmp_path / "runs/small/latest-rank0.pt", weights_only=False)["state"]
    assert saved["timestamp"]["Timestamp"]["batch"] == int(said[1]) >= 5

    again = start(*said[2].split()[3:], f"max_duration={int(said[1]) + 2}ba")
    assert again.wait(timeout=120) == 0
    trained = [path.name for path in (tmp_path / "runs/small").glob("ep*.pt")]
    assert any(f"-ba{int(said[1]) + 2}-" in name for name in trained)


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(start, tmp_path):
    # A batch that takes long: the signal is received, and nothing is saved yet.
    process = start("batch_size=2048", "train_dataset.num_samples=2048", "train_dataset.size=224")
    until(lambda: re.search(r"0/1 ", (tmp_path / "stderr").read_text()) is not None)
    process.send_signal(signal.SIGINT)
    until(lambda: "repeat to stop immediately" in (tmp_path / "stderr").read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == -signal.SIGINT
    assert list((tmp_path / "runs/small").iterdir()) == []


def limited(size: int):
    """Return what makes a process's disk refuse files beyond a size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [pytest.param(20_000, marks=pytest.mark.slow), 500_000])
def test_a_full_disk_ends_the_run_and_leaves_what_was_whole(size, start, tmp_path):
    first = start("max_duration=1ba", "autoresume=true")
    assert first.wait(timeout=120) == 0
    before = kept(tmp_path / "runs/small")
    process = start(
        "max_duration=4ba", "save_interval=1ba", "autoresume=true", preexec_fn=limited(size)
    )
    assert process.wait(timeout=120) == 74
    (said,) = (line for line in lines(tmp_path) if line.startswith("composer-attn:"))
    assert said == "composer-attn: runs/small/ep0-ba2-rank0.pt cannot be written: File too large"
    assert kept(tmp_path / "runs/small") == before


def kept(folder: Path) -> dict[str, bytes]:
    """Read all but the config, which is that of the last run, and the histories, which grow."""
    growing = {"config.yaml", "history.jsonl", "steps.csv"}
    names = {path.name for path in folder.iterdir()} - growing
    return {name: (folder / name).read_bytes() for name in names}


def lines(folder: Path) -> list[str]:
    return (folder / "stderr").read_text().splitlines()


def closed(folder: Path) -> None:
    """Make a folder that may not be written to, not even by root."""
    (folder / "closed").mkdir(mode=0o555)
    if os.getuid() == 0:
        cap_dac_override, drop_from_bounding_set = 1, 24
        assert ctypes.CDLL(None).prctl(drop_from_bounding_set, cap_dac_override, 0, 0, 0) == 0


def test_a_folder_that_may_not_be_written_to_is_noticed_before_training(start, tmp_path):
    process = start(f"save_folder={tmp_path}/closed/inside", preexec_fn=lambda: closed(tmp_path))
    assert process.wait(timeout=120) == 2
    (said,) = (line for line in lines(tmp_path) if line.startswith("composer-attn:"))
    assert said.startswith("composer-attn: save_folder: cannot be written: ")
    assert "Permission denied" in said
