"""A run in its folder becomes the network that was evaluated, and all it takes to use it."""

import json
import shutil
from functools import partial

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import WeightsEnum

from composer_attn import attended_modules, load_run
from composer_attn.errors import ArgumentError, CheckpointError, ConfigError
from composer_attn.runs.data.digits import digits
from composer_attn.runs.inference.evaluate import evaluate
from composer_attn.runs.inference.export import export
from composer_attn.runs.models import build_network
from composer_attn.runs.models.weights import arguments_by_weights
from composer_attn.runs.training import class_names
from tests.own_attentions import own
from tests.pictures import write_image_folder
from tests.runs.inference.conftest import train_in

__all__ = ["own"]

SMALL = """
run_name: small
model: {name: resnet10}
train_dataset: {name: image_folder, root: ROOT/train, augmentation: resnet, size: 32}
eval_dataset: {name: image_folder, root: ROOT/val, augmentation: center_crop, size: 32, resize: 40}
optimizer: {name: sgd, lr: 0.05, no_decay: [bias, norm, attention]}
batch_size: 4
max_duration: 2ba
save_interval: 1ba
device: cpu
"""


@pytest.fixture
def small(tmp_path):
    """Return a function that trains on a folder of pictures with overrides, and its folder."""

    root = write_image_folder(tmp_path / "pictures")

    def go(*overrides):
        folder = tmp_path / "small"
        return folder, train_in(folder, *overrides, config=SMALL.replace("ROOT", str(root)))

    return go


def test_the_network_is_the_one_that_was_evaluated(trained):
    folder, summary = trained
    network, preprocessing, classes = run = load_run(folder, checkpoint="last")
    assert classes == tuple("0123456789")
    assert len(attended_modules(network)) == summary.attended_layers == 9
    assert not network.training
    source = digits("test", size=8)
    images, labels = source.dataset.tensors
    with torch.inference_mode():
        right = (network(images).argmax(1) == labels).float().mean()
    assert 0.3 < right == pytest.approx(summary.metrics["accuracy"])
    assert (run.checkpoint.name, preprocessing.size) == ("ep0-ba21-rank0.pt", 8)
    torch.testing.assert_close(run.probabilities(images[:8]), network(images[:8]).softmax(1))


def test_the_best_checkpoint_is_the_one_of_the_best_evaluation(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run", symlinks=True)
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line["figures"] |= {"accuracy": {7: 0.5, 14: 0.9, 21: 0.8}[line["batch"]]}
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = {each: load_run(folder, checkpoint=each).checkpoint.name for each in ("best", "last")}
    assert names == {"best": "ep0-ba14-rank0.pt", "last": "ep0-ba21-rank0.pt"}
    file = folder / "ep0-ba7-rank0.pt"
    first, best = load_run(file), load_run(folder)
    assert first.checkpoint == load_run(folder, checkpoint=file).checkpoint == file
    assert not torch.equal(first.network.fc.weight, best.network.fc.weight)
    (folder / "history.jsonl").unlink()
    assert load_run(folder).checkpoint.name == "ep0-ba21-rank0.pt"


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithms={eca: {placement: residual}, blurpool: {min_channels: 16}}"],
        ["algorithms={ema: {half_life: 1ba}}", "model.loss=binary_cross_entropy"],
        ["algorithms={squeeze_excite: {min_channels: 256}, channels_last: {}}"],
    ],
)
def test_whatever_the_algorithms_its_evaluation_is_that_of_the_summary(small, overrides):
    folder, summary = small(*overrides)
    run = load_run(folder, checkpoint="last")
    assert evaluate(run).metrics == pytest.approx(summary.metrics, rel=1e-5)
    assert run.classes == ("class0", "class1", "class2")
    activation = "sigmoid" if "loss" in overrides[-1] else "softmax"
    assert run.activation == activation


@pytest.mark.parametrize(
    "algorithms",
    [
        "{squeeze_excite: {min_channels: 256}}",
        pytest.param("{eca: {}, ema: {half_life: 1ba}}", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_compiled_is_loaded_uncompiled(small, algorithms, tmp_path, monkeypatch):
    # Traced and wrapped as by inductor, without the minutes that it takes to compile.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    folder, summary = small("compile=true", f"algorithms={algorithms}")
    run = load_run(folder, checkpoint="last")
    assert evaluate(run).metrics == pytest.approx(summary.metrics, rel=1e-4)
    assert len(attended_modules(run.network)) == summary.attended_layers
    assert not [name for name, _ in run.network.named_parameters() if "_orig_mod" in name]
    path, _ = export(run, "torch_export", tmp_path / "model.pt2")
    assert path.is_file()


def test_neither_the_data_nor_first_weights_need_be_there(small, tmp_path):
    folder, _ = small()
    weights = tmp_path / "first.pt"
    torch.save(load_run(folder).network.state_dict(), weights)
    shutil.rmtree(folder)
    folder, _ = small(f"model.weights={weights}")
    image = Image.open(next((tmp_path / "pictures/val").glob("*/*")))
    image.load()
    shutil.rmtree(tmp_path / "pictures")
    weights.unlink()
    network, preprocessing, classes = load_run(folder)
    assert classes == ("class0", "class1", "class2")
    assert network(preprocessing(image)[None]).shape == (1, 3)
    # A folder that an earlier version has left behind.
    (folder / class_names.FILE).unlink()
    with pytest.raises(ConfigError, match="the number of the network's classes is not known"):
        load_run(folder)
    config = folder / "config.yaml"
    config.write_text(
        config.read_text().replace("name: resnet10", "name: resnet10\n  num_classes: 3")
    )
    with pytest.warns(UserWarning, match="classes are numbered"):
        assert load_run(folder).classes == ("0", "1", "2")


def test_a_custom_attention_is_available_once_it_is_imported(own, registry, small):
    folder, summary = small("algorithms={simam: {min_channels: 256}}")
    assert len(attended_modules(load_run(folder).network)) == summary.attended_layers == 6
    registry._registered.pop("simam")
    with pytest.raises(ConfigError, match="unknown algorithm 'simam'"):
        load_run(folder)


def test_attention_that_came_with_a_checkpoint_is_added(trained, small, recwarn):
    folder, _ = trained
    again = f"load_path={folder}/latest-rank0.pt"
    other, summary = small(again, "load_weights_only=true", "model.num_classes=10")
    assert len(attended_modules(load_run(other).network)) == summary.attended_layers == 9


def test_a_folder_that_is_not_a_run_is_refused(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(ArgumentError, match=r"there is no run .*: no such folder or file"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match=r"holds no config\.yaml; the runs tiny are inside"):
        load_run(folder.parent)
    with pytest.raises(ArgumentError, match="checkpoint must be best, last or a file"):
        load_run(folder, checkpoint="newest")
    with pytest.raises(ArgumentError, match=r"only eval_dataset, .* can be changed; got 'model=x'"):
        load_run(folder, overrides=["model=x"])
    shutil.copy(folder / "config.yaml", tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_run(tmp_path)


def test_a_checkpoint_of_another_network_or_with_code_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run", symlinks=True)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("resnet10", "resnet18"))
    with pytest.raises(CheckpointError, match=r"weights of a different network from .*Missing key"):
        load_run(folder)
    (folder / "config.yaml").write_text(config)
    made = tmp_path / "made"

    class Attack:
        def __reduce__(self):
            return made.touch, ()

    crafted = {"state": {"model": {"w": torch.zeros(1)}, "algorithms": [], "x": Attack()}}
    torch.save(crafted, folder / "ep9-ba99-rank0.pt")
    with pytest.raises(CheckpointError, match="safe to load"):
        load_run(folder, checkpoint="last")
    assert not made.exists()


@pytest.mark.parametrize(
    ("name", "weights", "num_classes", "set_by_weights"),
    [
        ("googlenet", "IMAGENET1K_V1", None, {"transform_input": True}),
        ("inception_v3", "IMAGENET1K_V1", 1000, {"transform_input": True}),
        ("inception_v3", "IMAGENET1K_V1", 10, {}),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", None, {"image_size": 384}),
        ("resnet18", "ResNet18_Weights.DEFAULT", None, {}),
        ("resnet18", "first.pt", None, {}),
        ("resnet18", None, None, {}),
    ],
)
def test_what_published_weights_set_is_kept_without_them(
    name, weights, num_classes, set_by_weights
):
    section = {"name": name, "weights": weights, "num_classes": num_classes}
    assert arguments_by_weights(section) == set_by_weights


def test_torchvision_sets_the_same(monkeypatch):
    build = torchvision.models.googlenet
    plain = build(init_weights=False, aux_logits=True)
    state = plain.state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **more: state)
    assert not plain.transform_input
    section = {"name": "googlenet", "weights": "IMAGENET1K_V1"}
    assert build_network(section).transform_input
    again = {"name": "googlenet", **arguments_by_weights(section), "init_weights": False}
    assert build_network(again).transform_input
