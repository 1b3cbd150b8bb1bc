"""A run evaluated again: on its own data as its summary says, and on others."""

import json

import pytest
import torch

from composer_attn import load_run
from composer_attn.errors import ConfigError
from composer_attn.runs.data.digits import digits
from composer_attn.runs.inference.evaluate import evaluate
from tests.commands import invoke
from tests.pictures import write_image_folder


def test_its_own_data_give_the_metrics_of_its_summary(trained, capfd):
    folder, summary = trained
    assert invoke("evaluate", str(folder), "--checkpoint", "last", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["metrics"] == pytest.approx(summary.metrics, rel=1e-5)
    assert (found["samples"], found["skipped_images"]) == (360, 0)
    assert found["dataset"] == {"name": "digits", "split": "test", "size": 8}
    assert found["checkpoint"] == str(folder / "ep0-ba21-rank0.pt")


def test_other_data_are_evaluated_on_as_the_overrides_say(trained, capfd):
    folder, _ = trained
    other = ["eval_dataset.split=train", "batch_size=500"]
    assert invoke("evaluate", str(folder), *other) == 0
    printed = capfd.readouterr().out
    images, labels = digits("train", size=8).dataset.tensors
    with torch.inference_mode():
        right = (load_run(folder).network(images).argmax(1) == labels).float().mean()
    assert "on 1,437 images" in printed
    assert f"  accuracy: {right:.2%}\n" in printed


def test_data_of_other_classes_are_refused(trained, tmp_path):
    folder, _ = trained
    root = write_image_folder(tmp_path / "pictures", images=2)
    to = ["eval_dataset.name=image_folder", f"eval_dataset.root={root}/val"]
    loaded = load_run(folder)
    loaded.config.eval_dataset = {"name": "synthetic", "num_classes": 11, "size": 8}
    with pytest.raises(
        ConfigError, match="eval_dataset: it has 11 classes, but the network has 10"
    ):
        evaluate(loaded)
    object.__setattr__(loaded, "classes", ("class0", "class2", "class1"))
    loaded.config.eval_dataset = {
        "name": "image_folder", "root": f"{root}/val", "augmentation": "center_crop", "size": 16,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="its classes are not the network's"):
        evaluate(loaded)
    assert invoke("evaluate", str(folder), *to) == 2  # split is no argument of image_folder


def test_a_run_without_evaluation_data_asks_for_some(trained):
    loaded = load_run(trained[0])
    loaded.config.eval_dataset = None
    with pytest.raises(ConfigError, match="tiny was trained without one: give the data"):
        evaluate(loaded)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=1"], "only eval_dataset, batch_size, device, precision of a"),
        (["eval_dataset.splat=train"], "unknown argument of digits 'splat'"),
        (["eval_dataset.split=valid"], "split of digits must be train or test"),
        (["device=abacus"], "abacus"),
    ],
)
def test_wrong_overrides_are_one_line(trained, arguments, words, capfd):
    assert invoke("evaluate", str(trained[0]), *arguments) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("composer-attn")]
    assert len(lines) == 1
    assert words in lines[0]
    assert printed.out == ""
