"""Classes and probabilities of image files, from a run, a checkpoint, or an exported file."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from composer_attn import load_run
from composer_attn.errors import ArgumentError
from composer_attn.runs.inference.predict import predict
from tests.commands import invoke


def test_predictions_are_the_networks_own(trained, digit_files):
    loaded = load_run(trained[0])
    predictions = predict(loaded, digit_files, top=3)
    # The files hold what the run was evaluated on: integers to 16, on 8x8 pixels.
    pixels = torch.as_tensor(load_digits().images[:12], dtype=torch.float32)[:, None] / 8 - 1
    images = torch.nn.functional.interpolate(pixels, (8, 8), mode="bilinear").expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = loaded.network(images).softmax(1)
    assert expected.std() > 0.03
    for path, probabilities, prediction in zip(digit_files, expected, predictions, strict=True):
        best = probabilities.topk(3)
        assert prediction.image == str(path)
        assert [guess.index for guess in prediction.guesses] == best.indices.tolist()
        assert [guess.name for guess in prediction.guesses] == list(map(str, best.indices.tolist()))
        found = [guess.probability for guess in prediction.guesses]
        assert found == pytest.approx(best.values.tolist(), abs=0.02)  # bytes are not 16ths


def test_more_images_than_a_batch_are_predicted_in_their_order(trained, digit_files):
    loaded = load_run(trained[0])
    few = predict(loaded, digit_files)
    many = predict(loaded, [*digit_files] * 3)
    assert [prediction.image for prediction in many] == [str(path) for path in digit_files] * 3
    for one, other in zip(many[-12:], few, strict=True):
        assert one.guesses[0].index == other.guesses[0].index
        assert one.guesses[0].probability == pytest.approx(other.guesses[0].probability, abs=1e-5)


def test_what_is_printed_is_a_line_for_each_image(trained, digit_files, capfd):
    folder, _ = trained
    images = [str(path) for path in digit_files[:2]]
    assert invoke("predict", str(folder / "ep0-ba21-rank0.pt"), *images, "--top", "2") == 0
    lines = capfd.readouterr().out.splitlines()
    expected = predict(load_run(folder, checkpoint="last"), images, top=2)
    assert lines == [str(prediction) for prediction in expected]
    assert lines[0].startswith(f"{images[0]}: ")
    assert lines[0].count("%") == 2


def test_what_cannot_be_predicted_is_one_line(trained, digit_files, tmp_path, capfd):
    folder, _ = trained
    broken = tmp_path / "broken.png"
    broken.write_bytes(digit_files[0].read_bytes()[:40])
    Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    for arguments, words in (
        ((folder, broken), "broken.png cannot be read as an image"),
        ((folder, tmp_path / "no.png"), "no.png cannot be read as an image"),
        (
            (folder, tmp_path / "float.tif"),
            "float.tif cannot be prepared: its largest possible value",
        ),
        ((folder, digit_files[0], "--top", "0"), "top must be"),
        ((tmp_path / "nowhere", digit_files[0]), "there is no run"),
        ((tmp_path / "no.onnx", digit_files[0]), "there is no file"),
    ):
        assert invoke("predict", *map(str, arguments)) == 2
        printed = capfd.readouterr()
        assert words in printed.err
        assert printed.err.startswith("composer-attn: ")
        assert printed.err.count("\n") == 1
        assert printed.out == ""


def test_synthetic_data_tell_nothing_about_images(tmp_path, digit_files):
    from tests.runs.inference.conftest import train_in

    data = "{name: synthetic, num_samples: 8, num_classes: 10, size: 32}"
    folder = tmp_path / "synthetic"
    config = (
        f"model: {{name: resnet10}}\ntrain_dataset: {data}\noptimizer: {{name: sgd, lr: 0.01}}\n"
        "batch_size: 4\nmax_duration: 1ba\nsave_interval: 1ba\ndevice: cpu\n"
    )
    train_in(folder, config=config)
    loaded = load_run(folder)
    assert loaded.network(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(ArgumentError, match="trained on synthetic data"):
        predict(loaded, digit_files)
