"""The recipes of detectors, of boxes, masks and keypoints, on COCO: begun on a dataset like it."""

import json

import pytest
import torch
from rich.console import Console
from torchvision.models import resnet50

from composer_attn import apply_attention
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.training.dry_run import rehearse
from composer_attn.runs.training.train import train
from tests.commands import ROOT, invoke
from tests.detection_data import content, write_coco

VARIANT = """
base: {recipe}
model: {{weights_backbone: ./classifier.pt, min_size: 64, max_size: 64, {points}
  rpn_post_nms_top_n_train: 30, rpn_post_nms_top_n_test: 10, box_batch_size_per_image: 16}}
train_dataset: {{num_workers: 0}}
eval_dataset: {{num_workers: 0}}
batch_size: 2
max_duration: 2ba
scheduler: {{t_warmup: 0ba}}
precision: fp32
device: cpu
"""


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """Write a dataset in COCO's layout, with a box of no area in training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COCO", str(tmp_path / "coco"))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    for split, count in (("train", 6), ("val", 2)):
        found = content(count, seed=count)
        folder = tmp_path / f"coco/{split}2017"
        write_coco(folder, found)
        (folder / "annotations.json").unlink()
        if split == "train":
            found["annotations"][0]["bbox"] = [1, 1, 0, 5]
        path = tmp_path / f"coco/annotations/instances_{split}2017.json"
        path.write_text(json.dumps(found))
        # Of persons alone, as in COCO.
        found["categories"] = [found["categories"][0] | {"id": 1, "name": "person"}]
        for each in found["annotations"]:
            each["category_id"] = 1
        (path.parent / f"person_keypoints_{split}2017.json").write_text(json.dumps(found))
    return tmp_path


SITES = {"plain": 0, "se": 46, "eca": 16}
FIGURES = {"faster": "map", "mask": "mask_map", "keypoint": "keypoint_map"}


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        pytest.param(k, v, marks=() if (k, v) == ("faster", "eca") else pytest.mark.slow)
        for k in FIGURES
        for v in SITES
    ],
)
@pytest.mark.filterwarnings("ignore:the model has 80 classes")
@pytest.mark.filterwarnings("ignore:left out of", "ignore:The warmup duration is 0")
def test_a_recipe_begins_with_the_attention_of_a_classifier(kind, variant, coco):
    recipe = ROOT / f"yamls/{kind}rcnn_resnet50_coco_{variant}.yaml"
    classifier = resnet50()
    for name, arguments in load_checked(
        ROOT / f"yamls/resnet50_imagenet_{variant}.yaml"
    ).algorithms.items():
        if name != "channels_last":
            apply_attention(classifier, name, **arguments)
    torch.save({"state": {"model": classifier.state_dict()}}, coco / "classifier.pt")
    points = "num_keypoints: 4," if kind == "keypoint" else ""  # of the persons written here
    (coco / "run.yaml").write_text(VARIANT.format(recipe=recipe, points=points))
    assert invoke("validate", "run.yaml") == 0
    config = load_checked("run.yaml")
    console = Console(record=True, width=120)
    rehearse(config, console)
    assert "5 in 2 batches per rank" in console.export_text()
    assert not (coco / "runs").exists()
    summary = train(config)
    assert summary.attended_layers == SITES[variant]
    assert summary.passed_over_files == {"boxes of no area": 1}
    assert 0 <= summary.metrics[FIGURES[kind]] <= 1
    state = torch.load(coco / f"runs/{recipe.stem}/latest-rank0.pt", weights_only=False)["state"]
    # The first stage is frozen, and is the classifier's; attention in it is trained.
    before = classifier.state_dict()
    body = {n.partition(".body.")[2]: t for n, t in state["model"].items() if ".body." in n}
    same = {name for name, tensor in body.items() if torch.equal(tensor, before[name])}
    first = {name for name in body if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert {name for name in first if ".attention." not in name} <= same
    assert {name for name in same if ".attention." in name} == set()
