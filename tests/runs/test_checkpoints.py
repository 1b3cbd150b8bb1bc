"""What a run left that was ended while it wrote a checkpoint."""

import pytest

from composer_attn.runs.check import load_checked
from composer_attn.runs.checkpoints import drop_unfinished
from composer_attn.runs.train import train
from tests.runs.test_train import CONFIG


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, of which the second is the latest that was finished."""
    for name in ("ep1-ba9-rank0.pt", "ep2-ba18-rank0.pt", "ep3-ba100-rank0.pt", "epilogue.pt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "latest-rank0.pt").symlink_to("ep2-ba18-rank0.pt")
    return tmp_path


def test_what_is_newer_than_the_latest_goes(folder):
    assert drop_unfinished(folder) == [folder / "ep3-ba100-rank0.pt"]
    assert drop_unfinished(folder) == []
    assert len(list(folder.iterdir())) == 4


def test_without_a_latest_none_was_finished(folder):
    (folder / "latest-rank0.pt").unlink()
    assert len(drop_unfinished(folder)) == 3
    assert [path.name for path in folder.iterdir()] == ["epilogue.pt"]


def test_a_latest_that_is_no_link_is_left_alone(folder):
    (folder / "latest-rank0.pt").unlink()
    (folder / "latest-rank0.pt").write_text("x")
    assert drop_unfinished(folder) == []


def test_a_run_goes_on_beside_a_checkpoint_that_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    ends = ("max_duration=1ep", "max_duration=2ep")
    config = [load_checked("run.yaml", ["autoresume=true", end]) for end in ends]
    train(config[0])
    (tmp_path / "runs" / "small" / "ep2-ba4-rank0.pt").write_bytes(b"PK")
    assert train(config[1]).metrics
