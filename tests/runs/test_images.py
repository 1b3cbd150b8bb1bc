"""Runs on images from files: a folder and a stream train, resume and evaluate."""

import json

import pytest
import torch

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.train import train
from tests.pictures import write_image_folder, write_mds

COMMON = """
run_name: images
model: {name: resnet10, num_classes: 3}
optimizer: {name: adam, lr: 1.0e-3}
batch_size: 6
max_duration: 8ep
save_interval: 1ba
device: cpu
algorithms: {squeeze_excite: {min_channels: 256}, label_smoothing: {}}
train_dataset: {augmentation: resize_crop, size: 32, resize: 36}
eval_dataset: {augmentation: center_crop, size: 32, resize: 36}
"""
FOLDER = """
base: common.yaml
train_dataset: {name: image_folder, root: data/train}
eval_dataset: {name: image_folder, root: data/val}
algorithms: {mixup: {alpha: 0.2}}
"""
# Without MixUp: Composer does not restore, in the middle of a stream's epoch, the state it draws
# from. The samples themselves are the same.
STREAM = """
base: common.yaml
train_dataset: {name: mds, local: data, split: train, num_classes: 3}
eval_dataset: {name: mds, local: data, split: val, num_classes: 3}
"""


@pytest.fixture(params=["folder", "stream"])
def config(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write, data = {"folder": (write_image_folder, FOLDER), "stream": (write_mds, STREAM)}[
        request.param
    ]
    write(tmp_path / "data")
    (tmp_path / "common.yaml").write_text(COMMON)
    (tmp_path / "run.yaml").write_text(data)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def parameters(folder):
    return torch.load(f"{folder}/latest-rank0.pt", weights_only=False)["state"]["model"]


def test_a_run_learns_and_resumes_to_the_bit(config):
    whole = train(config())
    assert whole.metrics["accuracy"] >= 0.6  # the label is the brightest colour
    assert whole.skipped_images == 0
    train(config("max_duration=6ba", "autoresume=true", "run_name=halves"))
    halves = train(config("autoresume=true", "run_name=halves"))
    assert halves.metrics == whole.metrics
    expected, found = parameters(whole.save_folder), parameters(halves.save_folder)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_labels_beyond_the_models_classes_are_refused(config):
    with pytest.raises(ConfigError, match="train_dataset: it has 3 classes, but the model has 2"):
        train(config("model.num_classes=2"))


def test_other_classes_to_evaluate_are_refused(config, tmp_path):
    if "mds" in (tmp_path / "run.yaml").read_text():
        return  # a stream's labels have no names
    (tmp_path / "data/val/class1").rename(tmp_path / "data/val/other")
    with pytest.raises(ConfigError, match="eval_dataset: its 3 classes are not the 3 of train"):
        train(config())


def test_skipped_images_are_in_the_summary(config, tmp_path):
    if "mds" in (tmp_path / "run.yaml").read_text():
        return  # a stream is written by a program, image by image
    (tmp_path / "data/train/class0/0.jpg").write_bytes(b"")
    (tmp_path / "data/train/class0/0.gif").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"ignored 1 files in data/train .* \.gif \(1\)"):
        summary = train(config("train_dataset.on_bad_image=skip", "max_duration=1ep"))
    assert summary.skipped_images == 1
    kept = json.loads((tmp_path / "runs/images/summary.json").read_text())
    assert (kept["skipped_images"], kept["passed_over_files"]) == (1, {".gif": 1})
