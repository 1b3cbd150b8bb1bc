"""Resuming: from the newest checkpoint that is whole, whatever stands in the folder."""

import os

import pytest
import torch

from composer_attn.errors import CheckpointError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.checkpoint_saver import checkpoints_in
from composer_attn.runs.training.resume import find_checkpoint
from composer_attn.runs.training.train import train

CONFIG = """
run_name: small
model: {name: shufflenet_v2_x0_5, num_classes: 10}
train_dataset: {name: synthetic, num_samples: 16, num_classes: 10, size: 16}
eval_dataset: {name: synthetic, num_samples: 8, num_classes: 10, size: 16}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 4ba
save_interval: 1ba
save_num_checkpoints_to_keep: 3
device: cpu
autoresume: true
algorithms: {eca: {min_channels: 256}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path):
    """What a machine that lost power leaves: the right length, and none of what was written."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, zeroed, lambda path: path.write_bytes(b"")])
def test_a_torn_newest_gives_way_to_the_one_before(damage, config, tmp_path):
    whole = train(config("run_name=whole"))
    train(config("max_duration=3ba"))
    folder = tmp_path / "runs" / "small"
    damage(folder / "ep0-ba3-rank0.pt")
    with pytest.warns(UserWarning, match=r"ep0-ba3-rank0\.pt .*; resuming from ep0-ba2-rank0\.pt"):
        resumed = train(config())
    assert resumed.metrics == whole.metrics
    assert (folder / "ep0-ba3-rank0.pt.torn").exists()
    names = [path.name for path in checkpoints_in(folder)]
    assert names == ["ep0-ba2-rank0.pt", "ep0-ba3-rank0.pt", "ep0-ba4-rank0.pt"]
    models = [torch.load(tmp_path / "runs" / name / "latest-rank0.pt", weights_only=False)["state"]
              for name in ("whole", "small")]  # fmt: skip
    assert all(torch.equal(models[0]["model"][k], v) for k, v in models[1]["model"].items())


def saved(folder, batch: int, weight: object = 1.0):
    weight = torch.full((4,), weight) if isinstance(weight, float) else weight
    path = folder / f"ep0-ba{batch}-rank0.pt"
    torch.save({"state": {"model": {"weight": weight}}}, path)
    return path


def test_what_a_killed_process_left_beside_the_checkpoints_is_no_matter(tmp_path):
    """Killed before the link was changed, the newest file is still the one to go on from."""
    older, newer = saved(tmp_path, 9), saved(tmp_path, 10)
    (tmp_path / "latest-rank0.pt").symlink_to(older.name)
    (tmp_path / ".partial-ep0-ba11-rank0.pt").write_bytes(b"begun")
    assert find_checkpoint(tmp_path) == newer
    assert os.readlink(tmp_path / "latest-rank0.pt") == newer.name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ep0-ba10-rank0.pt", "ep0-ba9-rank0.pt", "latest-rank0.pt"
    ]  # fmt: skip


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    (tmp_path / "latest-rank0.pt").symlink_to("ep0-ba1-rank0.pt")
    assert find_checkpoint(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_never_starts_anew_over_checkpoints_that_are_all_torn(tmp_path):
    for batch in (1, 2):
        cut(saved(tmp_path, batch))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact: .*ba2.*ba1.*torn"):
        find_checkpoint(tmp_path)


class Attack:
    def __reduce__(self):
        return open, ("attacked", "w")


@pytest.mark.parametrize(
    ("weight", "why"), [(Attack(), "is not safe to load"), (torch.nan, "holds ")]
)
def test_a_newest_that_is_whole_and_wrong_is_refused_not_passed_over(
    weight, why, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, 1)
    saved(tmp_path, 2, weight)
    with pytest.raises(CheckpointError, match=rf"ep0-ba2-rank0\.pt {why}"):
        find_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ep0-ba1-rank0.pt", "ep0-ba2-rank0.pt"
    ]  # fmt: skip


def test_checkpoints_of_an_earlier_process_count_among_those_to_keep(config, tmp_path):
    train(config("max_duration=3ba"))
    train(config("max_duration=4ba", "save_num_checkpoints_to_keep=2"))
    names = [path.name for path in checkpoints_in(tmp_path / "runs" / "small")]
    assert names == ["ep0-ba3-rank0.pt", "ep0-ba4-rank0.pt"]
