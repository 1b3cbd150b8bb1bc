"""What loggers write goes into the run's folder, unless the config says otherwise."""

import pytest
from composer.loggers import FileLogger, TensorboardLogger

from composer_attn.runs.training.log_files import keep_in_folder
from tests.commands import invoke

RUN = """
model: {name: resnet10, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 32}
optimizer: {name: sgd, lr: 0.01}
batch_size: 8
max_duration: 1ba
device: cpu
loggers: {tensorboard: {}, file: {capture_stdout: false, capture_stderr: false}}
"""


def test_a_run_leaves_no_files_beside_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    assert invoke("train", "run.yaml", "save_folder=out/{braces}") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run.yaml"]
    folder = tmp_path / "out" / "{braces}"
    events = [path.relative_to(folder).as_posix() for path in folder.rglob("events.out.tfevents.*")]
    assert events
    assert all(name.startswith("tensorboard/run/events.out.tfevents.") for name in events)
    assert "loss/train/total" in (folder / "logs-rank0.txt").read_text()


@pytest.mark.parametrize("arguments", [None, {}, {"log_dir": None}, {"flush_interval": 3}])
def test_tensorboard_by_default(arguments):
    logger = TensorboardLogger(**(arguments or {}))
    keep_in_folder([logger], {"tensorboard": arguments}, "runs/a")
    assert logger.log_dir == "runs/a/tensorboard"


def test_what_the_config_says_stays():
    board = TensorboardLogger(log_dir="boards")
    file = FileLogger("mine.txt", capture_stdout=False, capture_stderr=False)
    sections = {"tensorboard": {"log_dir": "boards"}, "file": {"filename": "mine.txt"}}
    keep_in_folder([board, file], sections, "runs/a")
    assert (board.log_dir, file.filename_format) == ("boards", "mine.txt")
