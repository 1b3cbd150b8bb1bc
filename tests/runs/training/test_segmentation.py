"""Runs of semantic segmentation: from YAML to summary, resumed, learning, evaluated, refused."""

import json

import numpy as np
import pytest
import torch

from composer_attn import apply_eca, attended_modules
from composer_attn.errors import ArgumentError, CheckpointError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.inference import load_run
from composer_attn.runs.inference.evaluate import evaluate
from composer_attn.runs.models.table import resnet10
from composer_attn.runs.training.dry_run import rehearse
from composer_attn.runs.training.examples import COUNT, read_examples
from composer_attn.runs.training.history import read_history
from composer_attn.runs.training.step_times import measure
from composer_attn.runs.training.train import train
from tests.commands import ROOT, invoke
from tests.runs.data.segmentation.masks import write_mask_folder, write_voc

CONFIG = """
run_name: small
task: semantic_segmentation
model: {name: lraspp, backbone: resnet10}
train_dataset: {name: mask_folder, root: data/train, classes: [background, cat, dog],
  augmentation: random_resize_crop, size: 32, resize: 30}
eval_dataset: {name: mask_folder, root: data/val, classes: [background, cat, dog],
  augmentation: resize, resize: 30}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 2ep
save_interval: 1ba
device: cpu
algorithms: {eca: {min_channels: 256}}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a function that loads the config above with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    write_mask_folder(tmp_path / "data/train", 8)
    write_mask_folder(tmp_path / "data/val", 3, size=(36, 30))
    (tmp_path / "run.yaml").write_text(CONFIG)
    return lambda *overrides: load_checked("run.yaml", list(overrides))


def test_a_run_leaves_what_others_leave(config, tmp_path):
    summary = train(config())
    folder = tmp_path / "runs/small"
    assert summary.attended_layers == 6
    assert set(summary.metrics) == {"mean_iou", "pixel_accuracy"}
    assert all(0 <= value <= 1 for value in summary.metrics.values())
    assert summary.macs > 10**6
    assert json.loads((folder / "classes.json").read_text())["classes"] == [
        "background", "cat", "dog"
    ]  # fmt: skip
    moments = [moment for moment in read_history(folder) if moment.kind == "eval"]
    assert moments[-1].figures == summary.metrics
    assert not (folder / "predictions.npz").exists()


def test_it_keeps_the_first_evaluation_images_as_predicted(config, tmp_path):
    train(config())
    examples = read_examples(tmp_path / "runs/small")
    assert len(examples) == min(3, COUNT)
    run = load_run(tmp_path / "runs/small", checkpoint="last")
    for example in examples:
        assert example["image"].shape == (3, 30, 36)
        assert example["truth"].shape == example["predicted"].shape == (30, 36)
        assert example["predicted"].max() <= 2
        assert (example["truth"][:, 0] == 255).all()
    assert run.classes == ("background", "cat", "dog")


def test_an_interrupted_run_ends_as_one_that_was_not(config, tmp_path):
    whole = train(config("run_name=whole"))
    train(config("max_duration=3ba"))
    resumed = train(config("autoresume=true", "save_folder=runs/small"))
    assert resumed.metrics == whole.metrics
    states = [
        torch.load(tmp_path / "runs" / name / "latest-rank0.pt", weights_only=False)["state"]
        for name in ("whole", "small")
    ]
    assert all(torch.equal(states[0]["model"][k], w) for k, w in states[1]["model"].items())
    examples = [read_examples(tmp_path / "runs" / name) for name in ("whole", "small")]
    for one, other in zip(*examples, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_dry_run_counts_and_saves_nothing(config, tmp_path, capfd):
    rehearse(config())
    told = capfd.readouterr().out
    assert "8 in 2 batches per rank" in told
    assert "multiply-accumulates" in told
    assert not (tmp_path / "runs").exists()


def test_a_head_of_another_number_of_classes_is_refused_before_training(config, tmp_path):
    with pytest.raises(ConfigError, match="train_dataset: it has 3 classes, but the model has 2"):
        train(config("model.num_classes=2"))
    assert not (tmp_path / "runs").exists()
    with pytest.warns(UserWarning, match="the model has 5 classes, but train_dataset has 3"):
        train(config("model.num_classes=5", "max_duration=1ba"))


def test_other_classes_in_evaluation_are_refused(config):
    with pytest.raises(ConfigError, match=r"eval_dataset: its 3 classes are not the 3 of .*dog"):
        train(config("eval_dataset.classes=[background,cat,cow]"))


def test_bad_masks_are_refused_before_training_and_skipped_if_asked(config, tmp_path):
    for path in (tmp_path / "data/train/masks").glob("0[01].png"):
        path.unlink()
    with pytest.raises(ConfigError, match="train_dataset: images and masks in data/train"):
        train(config())
    assert not (tmp_path / "runs").exists()
    summary = train(config("train_dataset.on_bad_image=skip", "max_duration=1ep"))
    assert summary.skipped_images == 2


def test_a_trained_run_is_loaded_and_evaluated(config, tmp_path):
    summary = train(config())
    run = load_run(tmp_path / "runs/small", checkpoint="last")
    assert evaluate(run).metrics == summary.metrics
    logits = run.network(torch.zeros(1, 3, 32, 48))["out"]
    assert logits.shape == (1, 3, 32, 48)
    with pytest.raises(ArgumentError, match="not known for task semantic_segmentation"):
        run.preprocessing(None)
    with pytest.raises(ArgumentError, match="probabilities is for runs of task classification"):
        run.probabilities(torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize("command", ["export", "heatmaps", "benchmark"])
def test_commands_for_classification_refuse_in_one_line(command, config, capfd):
    train(config("max_duration=1ba"))
    image = "data/val/images/00.png"
    more = ["--images", image] if command == "heatmaps" else []
    assert invoke(command, "runs/small", *more) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{command} is for runs of task classification; small is of task" in told
    assert "load_run, evaluate, predict, study and report work" in told


def test_steps_are_timed(config):
    (times,) = measure([config()], 0.1)
    assert times.image_shape == (3, 32, 32)
    assert times.kept_bytes > 0
    assert min(times.steps) > 0


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow) for v in ("plain", "se")] + ["eca"],
)
def test_the_voc_recipes_take_training_steps(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path)
    monkeypatch.setenv("VOC", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        f"""
base: {ROOT}/yamls/deeplabv3_resnet50_voc_{variant}.yaml
model: {{weights_backbone: null}}
train_dataset: {{size: 33, resize: 40, num_workers: 0}}
eval_dataset: {{resize: 40, num_workers: 0}}
batch_size: 2
max_duration: 2ba
precision: fp32
device: cpu
"""
    )
    assert invoke("validate", "run.yaml") == 0
    rehearse(load_checked("run.yaml"))
    summary = train(load_checked("run.yaml"))
    assert summary.attended_layers == {"plain": 0, "se": 46, "eca": 16}[variant]
    # torchvision publishes 42,004,074 parameters, the auxiliary classifier included.
    assert summary.parameters_before == 42_004_074
    assert np.isfinite(summary.metrics["mean_iou"])


def test_the_backbone_of_an_attended_classifier_is_trained_on(config, tmp_path):
    classifier = resnet10(num_classes=10)
    apply_eca(classifier, min_channels=256)
    for module in attended_modules(classifier).values():
        torch.nn.init.constant_(module.conv.weight, 3.0)
    torch.save({"state": {"model": classifier.state_dict()}}, tmp_path / "classifier.pt")
    given = ("model.weights_backbone=./classifier.pt", "algorithms.eca.include=backbone.*")
    summary = train(config(*given, "optimizer.lr=1e-9", "max_duration=1ba"))
    state = torch.load(tmp_path / "runs/small/latest-rank0.pt", weights_only=False)["state"]
    theirs = classifier.state_dict()
    attention = {n: w for n, w in state["model"].items() if ".attention." in n}
    assert len(attention) == summary.attended_layers == len(attended_modules(classifier))
    for name, weight in attention.items():
        assert torch.allclose(weight, theirs[name.partition(".backbone.")[2]], atol=1e-6)
    # It is loaded again though the file is gone, and without its attention has no place.
    (tmp_path / "classifier.pt").rename(tmp_path / "moved.pt")
    assert evaluate(load_run("runs/small", checkpoint="last")).metrics == summary.metrics
    with pytest.raises(CheckpointError, match=r"a different network: .* is not in the model"):
        train(config("model.weights_backbone=./moved.pt", "algorithms=null", "run_name=other"))
    assert not (tmp_path / "runs/other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eca", "plain"])
def test_the_recipe_of_shapes_learns(attention, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Half of the images, in batches of half the size, for some more epochs; and one evaluation.
    half = ["batch_size=8", "train_dataset.num_samples=256", "max_duration=11ep"]
    overrides = [*half, "eval_interval=1dur"]
    if attention == "plain":
        overrides.append("algorithms=null")
    summary = train(load_checked(ROOT / "yamls/shapes_segmentation_eca.yaml", overrides))
    assert summary.metrics["mean_iou"] > 0.65
