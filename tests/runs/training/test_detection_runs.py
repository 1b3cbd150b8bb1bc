"""Runs of detection, instance segmentation and keypoints: train, resume, refuse, rebuild."""

import json

import pytest
import torch

from composer_attn import apply_eca
from composer_attn.errors import CheckpointError, ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.inference.evaluate import evaluate
from composer_attn.runs.inference.load_run import load_run
from composer_attn.runs.models.table import resnet10
from composer_attn.runs.training.dry_run import rehearse
from composer_attn.runs.training.examples import read_examples
from composer_attn.runs.training.train import train
from tests.commands import invoke
from tests.detection_data import content, write_coco, write_voc_masks

SMALL = """
run_name: small
task: detection
model:
  name: faster_rcnn
  backbone: resnet10
  min_size: 64
  max_size: 64
  fpn_channels: 16
  box_head_channels: 32
  anchor_sizes: [8, 16, 24, 32, 48]
  rpn_post_nms_top_n_train: 50
  rpn_post_nms_top_n_test: 20
  box_batch_size_per_image: 16
train_dataset: {name: shapes, split: train, num_samples: 8, size: 48, augmentation: ssdlite}
eval_dataset: {name: shapes, split: test, num_samples: 3, size: 48}
optimizer: {name: sgd, lr: 0.002, momentum: 0.9}
batch_size: 2
max_duration: 4ba
save_interval: 1ba
eval_interval: 4ba
device: cpu
autoresume: true
algorithms: {eca: {placement: residual, min_channels: 64, include: backbone.body.*}}
"""
FIGURES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(SMALL)

    def config(*overrides, **sections):
        changed = json.dumps({"base": "run.yaml", **sections})  # JSON is YAML
        (tmp_path / "changed.yaml").write_text(changed)
        return load_checked("changed.yaml", list(overrides))

    return config


def on_coco(tmp_path, found=None, **more):
    """Sections that train on a dataset which is written, and evaluate on it."""
    section = {"name": "coco", **write_coco(tmp_path / "data", found), **more}
    return {"train_dataset": section, "eval_dataset": section}


def test_a_run_logs_each_loss_evaluates_and_is_loaded_again(config, tmp_path):
    summary = train(config("loggers.file.filename=log.txt"))
    assert summary.attended_layers == 4
    assert list(summary.metrics) == FIGURES
    assert summary.macs > 1e6
    history = [json.loads(line) for line in (tmp_path / "runs/small/history.jsonl").open()]
    assert sorted(m["kind"] for m in history) == ["eval", "train"]
    assert any(set(moment["figures"]) == set(FIGURES) for moment in history)
    (log,) = (path.read_text() for path in tmp_path.rglob("log.txt"))
    for loss in ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"):
        assert f"loss/train/{loss}" in log
    run = load_run("runs/small")
    assert run.classes == ("circle", "square", "triangle")
    assert evaluate(run).metrics == pytest.approx(summary.metrics, abs=1e-6, nan_ok=True)
    (detected,) = run.network([torch.rand(3, 40, 60)])
    assert set(detected) == {"boxes", "labels", "scores"}


def test_an_interrupted_run_goes_on_bit_for_bit(config, tmp_path):
    whole = train(config("run_name=whole"))
    train(config("max_duration=2ba"))
    resumed = train(config("train_dataset.num_workers=1"))
    assert resumed.metrics == pytest.approx(whole.metrics, abs=0, nan_ok=True)
    models = [torch.load(tmp_path / "runs" / name / "latest-rank0.pt", weights_only=False)["state"]
              for name in ("whole", "small")]  # fmt: skip
    assert all(torch.equal(models[0]["model"][k], v) for k, v in models[1]["model"].items())
    optimizers = [model["optimizers"]["SGD"]["state"] for model in models]
    for name, state in optimizers[0].items():
        for key, value in state.items():
            assert value is None or torch.equal(value, optimizers[1][name][key])


@pytest.mark.parametrize(
    ("task", "name", "figure"),
    [
        ("detection", "retinanet", "map"),
        ("instance_segmentation", "mask_rcnn", "mask_map"),
        pytest.param("keypoints", "keypoint_rcnn", "keypoint_map", marks=pytest.mark.slow),
    ],
)
def test_every_task_trains_on_coco_in_microbatches(task, name, figure, config, tmp_path):
    points = {"num_keypoints": 4} if task == "keypoints" else {}
    model = {"name": name, "backbone": "resnet10", "min_size": 64, "max_size": 96, **points}
    if task != "detection":
        model |= {"fpn_channels": 16, "box_head_channels": 32, "box_batch_size_per_image": 4,
                  "box_detections_per_img": 2}  # fmt: skip
    shorter = ("max_duration=1ba", "batch_size=4", "device_train_microbatch_size=2")
    data = on_coco(tmp_path, augmentation="hflip")
    summary = train(config(*shorter, task=task, model=model, **data))
    assert figure in summary.metrics
    assert summary.attended_layers == 4
    examples = (tmp_path / "runs/small/examples.npz").stat()
    assert examples.st_size > 0


KEYPOINTS = {
    "name": "keypoint_rcnn", "backbone": "resnet10", "num_keypoints": 4, "min_size": 64,
    "max_size": 64, "fpn_channels": 16, "box_head_channels": 32, "keypoint_head_channels": 16,
    "anchor_sizes": [8, 16, 24, 32, 48], "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 8, "box_detections_per_img": 5,
}  # fmt: skip


def test_keypoints_of_shapes_are_trained_resumed_and_reported(config, tmp_path):
    sections = {"task": "keypoints", "model": KEYPOINTS}
    mirrored = ("train_dataset.augmentation=hflip",)
    whole = train(config("run_name=whole", *mirrored, **sections))
    assert whole.attended_layers == 4
    assert 0 <= whole.metrics["keypoint_map"] <= 1
    train(config("max_duration=2ba", *mirrored, **sections))
    resumed = train(config(*mirrored, **sections))
    assert resumed.metrics == pytest.approx(whole.metrics, abs=0, nan_ok=True)
    models = [torch.load(tmp_path / "runs" / name / "latest-rank0.pt", weights_only=False)["state"]
              for name in ("whole", "small")]  # fmt: skip
    assert all(torch.equal(models[0]["model"][k], v) for k, v in models[1]["model"].items())
    example = read_examples(tmp_path / "runs/small")[0]
    assert example["truth_keypoints"].shape[1:] == (4, 3)
    assert invoke("report", "runs", "--out", "report") == 0
    assert "keypoint AP" in (tmp_path / "report/report.html").read_text()


def test_other_keypoints_than_the_networks_are_refused_before_training(config, tmp_path):
    says = r"train_dataset: its objects have 4 keypoints, but the model has 17: set model\.num_key"
    model = {k: v for k, v in KEYPOINTS.items() if k != "num_keypoints"}
    for begin in (train, rehearse):
        with pytest.raises(ConfigError, match=says):
            begin(config("train_dataset.augmentation=none", task="keypoints", model=model))
    assert not (tmp_path / "runs").exists()


def test_instances_of_voc_are_trained_on(config, tmp_path):
    write_voc_masks(tmp_path / "voc", {
        name: [("cat", (5, 5, 30, 30), 0), ("dog", (31, 10, 55, 38), 0)] for name in "abcd"
    })  # fmt: skip
    data = {"name": "voc", "root": "voc", "split": "train", "augmentation": "ssdlite"}
    model = {"name": "mask_rcnn", "mask_head_channels": 8} | {
        k: v for k, v in KEYPOINTS.items() if "keypoint" not in k and k != "name"
    }
    sections = {"train_dataset": data, "eval_dataset": data | {"augmentation": "none"}}
    summary = train(
        config("max_duration=1ba", task="instance_segmentation", model=model, **sections)
    )
    assert 0 <= summary.metrics["mask_map"] <= 1
    assert load_run("runs/small").classes[7] == "cat"


def test_bad_annotations_end_a_run_before_it_writes(config, tmp_path):
    found = content()
    found["annotations"][0]["category_id"] = 8
    data = on_coco(tmp_path, found)
    with pytest.raises(ConfigError, match=r"train_dataset: .*annotations\.json has 1 bad images"):
        train(config(**data))
    assert not (tmp_path / "runs").exists()
    skipping = on_coco(tmp_path, found, on_bad_image="skip", augmentation="none")
    with pytest.warns(UserWarning, match="1 unknown categories"):
        summary = train(config("max_duration=1ba", **skipping))
    assert summary.passed_over_files == {"unknown categories": 1}


def test_a_head_with_another_number_of_classes_is_one_line(config, tmp_path):
    with pytest.raises(ConfigError, match="it has 3 classes, but the model has 2"):
        train(config("model.num_classes=2"))
    assert not (tmp_path / "runs").exists()


def test_models_and_datasets_of_other_tasks_say_so(config):
    with pytest.raises(ConfigError, match="mask_rcnn is a model of task: instance_segmentation"):
        config("model.name=mask_rcnn")
    with pytest.raises(ConfigError, match="voc is a dataset of task: detection or task: insta"):
        config("task=keypoints", train_dataset={"name": "voc", "root": "a", "split": "train"})
    with pytest.raises(ConfigError, match="did you mean 'box_score_thresh'"):
        config("model.box_score_tresh=0.1")
    with pytest.raises(ConfigError, match="unknown backbone 'resnet11'; did you mean 'resnet1"):
        config("model.backbone=resnet11")
    with pytest.raises(ConfigError, match=r"algorithms\.mixup: is for images with one label each"):
        config("algorithms.mixup.alpha=0.2")
    with pytest.raises(ConfigError, match="min_size must be a whole number of pixels"):
        config("model.min_size=large")


def test_the_backbone_of_an_attended_classifier_is_trained_on(config, tmp_path):
    classifier = resnet10(num_classes=10)
    apply_eca(classifier, placement="residual", min_channels=64)
    torch.save({"state": {"model": classifier.state_dict()}}, tmp_path / "classifier.pt")
    frozen = ("model.weights_backbone=./classifier.pt", "model.trainable_backbone_layers=2")
    summary = train(config(*frozen))
    state = torch.load(tmp_path / "runs/small/latest-rank0.pt", weights_only=False)["state"]
    body = {n: t for n, t in state["model"].items() if ".body." in n}
    before = classifier.state_dict()
    kept = [n for n, t in body.items() if torch.equal(t, before[n.partition(".body.")[2]])]
    assert any("conv1" in name for name in kept)
    trained = set(body) - set(kept)
    assert any("layer1.0.bn2.attention" in name for name in trained)
    assert all("layer3" in n or "layer4" in n or "attention" in n for n in trained)
    # The norms are frozen, and are when the run is loaded, though the file may be gone.
    (tmp_path / "classifier.pt").unlink()
    assert evaluate(load_run("runs/small")).metrics == pytest.approx(
        summary.metrics, abs=1e-6, nan_ok=True
    )


def test_a_backbone_whose_attention_has_no_place_ends_a_run_before_it_writes(config, tmp_path):
    classifier = resnet10(num_classes=10)
    apply_eca(classifier, placement="residual", min_channels=64)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    with pytest.raises(CheckpointError, match=r"a different network: .* is not in the model"):
        train(config("model.weights_backbone=./classifier.pt", "algorithms.eca=null"))
    assert not (tmp_path / "runs").exists()
