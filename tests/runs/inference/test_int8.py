"""Files in eight-bit integers: calibrated on training images, judged by accuracy."""

import json
import sys
from math import prod

import onnx
import openvino
import pytest
import torch
from onnx import numpy_helper

from composer_attn import load_run
from composer_attn.errors import ArgumentError, ConfigError, ExportError, MissingExtraError
from composer_attn.runs.data.digits import digits
from composer_attn.runs.data.image_folder import image_folder
from composer_attn.runs.inference.comparison import ExportComparison
from composer_attn.runs.inference.export import export
from composer_attn.runs.inference.exported_model import open_exported
from composer_attn.runs.inference.exported_program import load_exported_program
from composer_attn.runs.inference.formats import FORMATS
from composer_attn.runs.inference.int8 import Int8
from composer_attn.runs.inference.model_card import read_card
from composer_attn.runs.inference.run_data import batches, calibration_images, evaluation_data
from tests.commands import invoke
from tests.pictures import write_image_folder
from tests.runs.inference.conftest import train_in

# A network after 21 batches is unsure of many digits, and rounding decides some of them.
LENIENT = Int8(calibration_images=64, accuracy_drop=0.05, agreement=0.8)
BYTES = {"onnx": 0.35, "torch_export": 0.4, "openvino": 0.35}


@pytest.fixture
def loaded(trained):
    return load_run(trained[0])


@pytest.mark.parametrize(
    "to", ["onnx", "openvino", pytest.param("torch_export", marks=pytest.mark.slow)]
)
def test_a_file_in_eight_bits_is_as_accurate_and_a_fraction_of_the_size(
    loaded, to, digit_files, tmp_path, capfd
):
    path, card = export(loaded, to, tmp_path / f"a{FORMATS[to].ending}", int8=LENIENT)
    floats, _ = export(loaded, to, tmp_path / f"b{FORMATS[to].ending}", samples=8)
    assert size_of(path) < BYTES[to] * size_of(floats)
    assert sum(weights_in(path)) > 4.8e6  # of the 4.9 million of a ResNet-10
    images, labels = digits("test", size=8).dataset.tensors
    compute = open_exported(path).compute
    with torch.inference_mode():
        before, after = loaded.network(images).argmax(1), compute(images).argmax(1)
        assert compute(images[:1]).shape == (1, 10)
    tested = card.evaluation
    assert tested["samples"] == 360
    assert tested["accuracy_before"] == pytest.approx((before == labels).float().mean().item())
    # Convolutions of other batches may round otherwise.
    found = (after == labels).float().mean().item()
    assert tested["accuracy_after"] == pytest.approx(found, abs=0.01)
    assert tested["agreement"] == pytest.approx((before == after).float().mean().item(), abs=0.01)
    assert tested["accuracy_after"] >= tested["accuracy_before"] - 0.05
    assert tested["largest_difference"] > 1e-4  # it is no float in disguise
    assert card.quantization["calibration_images"] == 64
    assert card.quantization["library"].startswith(("onnxruntime 1", "torch 2", "nncf "))
    assert read_card(path) == card
    assert "| quantization | bits: 8" in path.with_name(f"{path.name}.md").read_text()
    assert f"the same class for {tested['agreement']:.2%}" in card.as_text()
    assert invoke("predict", str(path), *map(str, digit_files), "--json", "--top", "10") == 0
    for found, file in zip(json.loads(capfd.readouterr().out), digit_files, strict=True):
        assert found["image"] == str(file)
        assert sum(guess["probability"] for guess in found["guesses"]) == pytest.approx(1, abs=1e-4)


def size_of(path):
    """Return the size of a file, and of its weights if they are in another."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if weights.exists() else 0)


def weights_in(path):
    """List the numbers of weights that a file has in eight bits, by tensor."""
    if path.suffix == ".xml":
        nodes = openvino.Core().read_model(str(path)).get_ordered_ops()
        return [
            prod(node.get_output_shape(0))
            for node in nodes
            if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8
        ]
    if path.suffix == ".onnx":
        tensors = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
        return [t.size for t in tensors if t.dtype == "int8" and t.size > 1]
    held = load_exported_program(path).state_dict.values()
    return [t.numel() for t in held if t.dtype == torch.int8]


def test_calibration_images_are_spread_over_the_training_images(loaded):
    images, _ = digits("train", size=8).dataset.tensors
    found = calibration_images(loaded, 10, 4)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.equal(torch.cat(found), images[[index * 1437 // 10 for index in range(10)]])
    assert sum(map(len, calibration_images(loaded, None, 64))) == 128
    assert sum(map(len, calibration_images(loaded, 1437, 64))) == 1437
    with pytest.raises(ArgumentError, match="at most 1,437, the number of training images; got 1,"):
        calibration_images(loaded, 1438, 64)


def test_calibration_images_are_prepared_as_in_evaluation_not_augmented(tmp_path):
    root = write_image_folder(tmp_path / "pictures")
    config = f"""
run_name: small
model: {{name: resnet10}}
train_dataset: {{name: image_folder, root: {root}/train, augmentation: resnet, size: 48}}
eval_dataset: {{name: image_folder, root: {root}/val, augmentation: center_crop, size: 32,
  resize: 40, mean: [0.1, 0.2, 0.3]}}
optimizer: {{name: sgd, lr: 0.05}}
batch_size: 4
max_duration: 1ba
device: cpu
"""
    folder = tmp_path / "small"
    train_in(folder, config=config)
    run = load_run(folder)
    source = image_folder(f"{root}/train", "center_crop", 32, 40, mean=[0.1, 0.2, 0.3])
    expected = torch.stack([image for image, _ in source.dataset])
    found = torch.cat(calibration_images(run, None, 4))
    torch.testing.assert_close(found, source.device_transform(expected))
    source, data = evaluation_data(run, 4)
    assert next(batches(source, data))[0].shape[1:] == found.shape[1:]
    (root / "train").rename(root / "gone")
    with pytest.raises(ConfigError, match=r"^train_dataset: "):
        export(run, "onnx", tmp_path / "a.onnx", int8=Int8())
    assert not (tmp_path / "a.onnx").exists()


def compared(before=0.9, after=0.9, agreement=1.0, difference=0.1):
    return ExportComparison(100, before, after, agreement, difference)


def test_a_quantized_file_is_judged_by_accuracy_and_agreement():
    int8 = Int8(accuracy_drop=0.01, agreement=0.95)
    assert compared(after=0.895, agreement=0.96).objection_to_int8(int8) == ""
    assert compared(after=0.95).objection_to_int8(int8) == ""
    assert "accuracy is 88.00%, and the network's 90.00%" in compared(after=0.88).objection_to_int8(
        int8
    )
    assert "for 94.00% of 100" in compared(agreement=0.94).objection_to_int8(int8)
    assert "not finite" in compared(difference=float("inf")).objection_to_int8(int8)


def test_a_quantized_file_that_is_less_accurate_than_accepted_is_not_kept(
    loaded, tmp_path, monkeypatch
):
    format = FORMATS["onnx"]
    other = type(format)(
        format.ending, format.write, lambda path: lambda images: images.flatten(1)[:, :10] * 0,
        write_int8=lambda network, example, path, calibration: path.write_text("a file"),
        int8_library="onnxruntime",
    )  # fmt: skip
    monkeypatch.setitem(FORMATS, "onnx", other)
    with pytest.raises(ExportError, match=r"a\.onnx was not kept: .* larger drop than the"):
        export(loaded, "onnx", tmp_path / "a.onnx", int8=LENIENT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"calibration_images": 0}, "calibration_images must be a whole number >= 1; got 0"),
        ({"calibration_images": 2.0}, "calibration_images must be a whole number"),
        ({"accuracy_drop": -0.1}, "accuracy_drop must be a number from 0 to 1; got -0.1"),
        ({"agreement": 95}, "agreement must be a number from 0 to 1; got 95"),
    ],
)
def test_settings_out_of_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        Int8(**arguments)


def test_what_cannot_be_quantized_is_refused_before_anything_is_written(loaded, tmp_path):
    for to, more, words in (
        ("torchscript", {}, "torchscript files cannot be quantized: int8 works with onnx"),
        ("onnx", {"tolerance": 0.1}, "tolerance does not apply to int8"),
        ("onnx", {"dynamic_size": True}, "int8 and dynamic_size cannot be combined"),
    ):
        with pytest.raises(ArgumentError, match=words):
            export(loaded, to, tmp_path / f"a{FORMATS[to].ending}", int8=LENIENT, **more)
    too_many = Int8(calibration_images=5000)
    with pytest.raises(ArgumentError, match=r"at most 1,437, .* got 5,000"):
        export(loaded, "onnx", tmp_path / "a.onnx", int8=too_many)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "library", "extra"), [("onnx", "onnx", "quantize"), ("openvino", "nncf", "openvino")]
)
def test_a_missing_library_names_its_extra(loaded, to, library, extra, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("onnxruntime.quantization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    ending = FORMATS[to].ending
    install = rf"pip install 'composer-attn\[{extra}\]'"
    message = rf"an eight-bit \{ending} file needs {library}: {install}"
    with pytest.raises(MissingExtraError, match=message):
        export(loaded, to, tmp_path / f"a{ending}", int8=LENIENT)
    assert list(tmp_path.iterdir()) == []


def test_the_command_quantizes_and_refuses_in_one_line(trained, tmp_path, capfd):
    folder = str(trained[0])
    out = ["--out", str(tmp_path / "a.onnx")]
    limits = ["--accuracy-drop", "0.05", "--agreement", "0.8", "--calibration-images", "32"]
    assert invoke("export", folder, *out, "--int8", *limits) == 0
    printed = capfd.readouterr().out
    assert "on 360 images, the network's " in printed
    assert "the same class for" in printed
    for more, words in (
        (["--calibration-images", "8"], "--calibration-images applies to quantization only"),
        (["--int8", "--calibration-images", "0"], "calibration_images must be a whole number >= 1"),
        (["--int8", "--calibration-images", "9999"], "at most 1,437"),
        (["--int8", "--to", "torchscript"], "torchscript files cannot be quantized"),
    ):
        given = out if "--to" not in more else []
        assert invoke("export", folder, *given, *more) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert words in line
