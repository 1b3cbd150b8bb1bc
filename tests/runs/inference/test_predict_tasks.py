"""Objects and pixels in image files: what is printed, and what is written."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from composer_attn import load_run
from composer_attn.errors import ArgumentError
from composer_attn.runs.data.shapes import draw_shapes
from composer_attn.runs.inference.index_images import IndexImages
from composer_attn.runs.inference.predict_any import predict_any
from composer_attn.runs.inference.predict_objects import predict_objects
from composer_attn.runs.inference.predict_pixels import predict_pixels
from tests.commands import invoke
from tests.runs.inference.conftest import train_in

HEADS = """
  min_size: 48
  max_size: 64
  fpn_channels: 16
  box_head_channels: 32
  anchor_sizes: [8, 16, 24, 32, 48]
  rpn_post_nms_top_n_train: 50
  rpn_post_nms_top_n_test: 20
  box_batch_size_per_image: 8
  box_detections_per_img: 4
  box_score_thresh: 0.0
"""
OBJECTS = """
run_name: objects
task: {task}
model:
  name: {name}
  backbone: resnet10
  {own}
{heads}
train_dataset: {{name: shapes, split: train, num_samples: 2, size: 48}}
optimizer: {{name: sgd, lr: 1.0e-4}}
batch_size: 2
max_duration: 1ba
device: cpu
"""
PIXELS = """
run_name: pixels
task: semantic_segmentation
model: {name: lraspp, backbone: resnet10}
train_dataset: {name: shapes_segmentation, split: train, num_samples: 4, size: 48}
optimizer: {name: sgd, lr: 0.01}
batch_size: 4
max_duration: 1ba
device: cpu
"""


def objects_config(task, name, own=""):
    return OBJECTS.format(task=task, name=name, own=own, heads=HEADS)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked") / "objects"
    config = objects_config("instance_segmentation", "mask_rcnn", "mask_head_channels: 8")
    train_in(folder, config=config)
    return folder


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmented") / "pixels"
    train_in(folder, config=PIXELS)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Write two images of different sizes."""
    paths = []
    for index, (width, height) in enumerate([(64, 48), (50, 70)]):
        image = Image.fromarray(draw_shapes(64, 0, index).image.permute(1, 2, 0).numpy())
        paths.append(tmp_path / f"{index}.png")
        image.resize((width, height)).save(paths[-1])
    return paths


def test_objects_are_those_that_the_network_detects(masked, pictures):
    run = load_run(masked, checkpoint="last")
    found = predict_objects(run, pictures, least_score=0)
    for path, each in zip(pictures, found, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        with torch.inference_mode():
            (expected,) = run.network([pixels])
        assert len(each.objects) == len(expected["scores"]) > 0
        assert [o.score for o in each.objects] == pytest.approx(expected["scores"].tolist())
        assert [o.box for o in each.objects] == [
            pytest.approx(box) for box in expected["boxes"].tolist()
        ]
        assert [o.index for o in each.objects] == expected["labels"].tolist()
        assert {o.name for o in each.objects} <= {"circle", "square", "triangle"}
        assert all(o.keypoints is None for o in each.objects)
    assert predict_objects(run, pictures, least_score=1)[0].objects == ()


def test_masks_number_the_objects_the_best_in_front(masked, pictures, tmp_path, capfd):
    images, out = [str(path) for path in pictures], str(tmp_path / "masks")
    arguments = ("--least-score", "0", "--out", out, "--checkpoint", "last", "--json")
    assert invoke("predict", str(masked), *images, *arguments) == 0
    told = json.loads(capfd.readouterr().out)
    assert [each["image"] for each in told] == images
    run = load_run(masked, checkpoint="last")
    for path, each in zip(pictures, told, strict=True):
        numbers = np.array(Image.open(each["mask"]))
        assert Image.open(each["mask"]).mode == "P"
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        with torch.inference_mode():
            masks = run.network([pixels])[0]["masks"][:, 0].numpy() > 0.5
        assert numbers.shape == masks.shape[1:] == pixels.shape[1:]
        first = np.where(masks.any(0), masks.argmax(0) + 1, 0)
        assert np.array_equal(numbers, first)


def test_keypoints_are_told(pictures, tmp_path, capfd):
    own = "num_keypoints: 4\n  keypoint_head_channels: 8"
    train_in(tmp_path / "points", config=objects_config("keypoints", "keypoint_rcnn", own))
    image = str(pictures[0])
    arguments = (str(tmp_path / "points"), image, "--least-score", "0")
    assert invoke("predict", *arguments, "--json") == 0
    (told,) = json.loads(capfd.readouterr().out)
    assert [len(each["keypoints"]) for each in told["objects"]] == [4] * len(told["objects"])
    assert told["mask"] is None
    assert invoke("predict", *arguments) == 0
    line = capfd.readouterr().out.strip()
    assert line.startswith(f"{image}: ")
    assert line.count("%") == len(told["objects"]) > 0
    assert invoke("predict", *arguments, "--out", str(tmp_path / "masks")) == 2
    assert "is of task keypoints, which has no masks" in capfd.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_pixels_are_classified_at_the_images_own_size(segmented, pictures, tmp_path, capfd):
    images, out = [str(path) for path in pictures], str(tmp_path / "masks")
    assert invoke("predict", str(segmented), *images, "--out", out, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    run = load_run(segmented)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for path, each in zip(pictures, told, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
        normal = (pixels - mean[:, None, None]) / std[:, None, None]
        with torch.inference_mode():
            expected = run.network(normal[None])["out"][0].argmax(0).numpy()
        written = np.array(Image.open(each["mask"]))
        assert written.shape == expected.shape
        assert (written == expected).mean() > 0.99  # ties are broken by rounding
        shares = {each["index"]: each["share"] for each in each["classes"]}
        assert shares == {int(i): float((written == i).mean()) for i in np.unique(written)}


def test_images_are_resized_as_for_evaluation_and_masks_are_not(segmented, pictures, tmp_path):
    run = load_run(segmented, overrides=[
        f"eval_dataset={{name: mask_folder, root: {tmp_path}, classes: [a, b, c, d], "
        "augmentation: resize, resize: 32}"
    ])  # fmt: skip
    sizes = []
    run.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    predict_pixels(run, pictures, tmp_path / "masks")
    assert [tuple(size) for size in sizes] == [(32, 42), (44, 32)]
    assert Image.open(tmp_path / "masks/1.png").size == (50, 70)


def test_what_cannot_be_predicted_writes_nothing(segmented, masked, pictures, tmp_path):
    run, out = load_run(segmented), tmp_path / "masks"
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    with pytest.raises(ArgumentError, match=r"broken\.png cannot be read as an image"):
        predict_pixels(run, [*pictures, broken], out)
    with pytest.raises(ArgumentError, match=r"several images would have the mask 0\.png"):
        predict_pixels(run, [pictures[0], tmp_path / "other/0.jpg"], out)
    with pytest.raises(ArgumentError, match="name the folder to write the masks to: --out FOLDER"):
        predict_any(run, pictures)
    with pytest.raises(ArgumentError, match="--top does not apply to task semantic_segmentation"):
        predict_any(run, pictures, top=3, out=out)
    with pytest.raises(ArgumentError, match="least_score must be a number from 0 to 1; got 2"):
        predict_any(load_run(masked), pictures, least_score=2)
    assert not out.exists()


def test_the_palette_is_that_of_pascal_voc(tmp_path):
    files = IndexImages(tmp_path, ["a.jpg"])
    files.add("a.jpg", np.array([[0, 1, 2, 8, 255]], np.uint8))
    files.write()
    colours = Image.open(tmp_path / "a.png").convert("RGB")
    assert list(colours.getdata()) == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (64, 0, 0), (224, 224, 192)
    ]  # fmt: skip
