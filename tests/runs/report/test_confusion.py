"""Confusion matrices, their differences, and the images that changed."""

import numpy as np
import pytest

from composer_attn.runs.report.changed_images import as_picture, changed_images
from composer_attn.runs.report.compare import compare
from composer_attn.runs.report.confusion_plots import confusion, confusion_plots
from composer_attn.runs.report.records import find_records
from composer_attn.runs.training import predictions
from tests.runs.runs_on_disk import write_predictions, write_run


def test_rows_are_classes_and_columns_predictions(tmp_path):
    write_run(tmp_path / "plain", wrong=(0, 10, 25), images=50)
    found = compare(find_records([tmp_path])).variants[0]
    matrix = confusion(found)
    expected = np.eye(10) * 5
    expected[0, 0], expected[0, 1] = 3, 2
    expected[5, 5], expected[5, 6] = 4, 1
    assert (matrix == expected).all()


def test_over_seeds_it_is_the_mean(tmp_path):
    write_run(tmp_path / "one", None, 1, wrong=(0, 10), images=50)
    write_run(tmp_path / "two", None, 2, wrong=(0,), images=50)
    matrix = confusion(compare(find_records([tmp_path])).variants[0])
    assert (matrix[0, 0], matrix[0, 1], matrix.sum()) == (3.5, 1.5, 50)


def test_the_difference_says_what_became_better_and_worse(tmp_path):
    write_run(tmp_path / "plain", wrong=(0, 10, 25), images=50)
    write_run(tmp_path / "eca", "eca", wrong=(3,), images=50)
    found = {name: alt for name, _, _, alt, _ in confusion_plots(compare(find_records([tmp_path])))}
    assert list(found) == ["confusion_plain", "confusion_eca", "confusion_eca_difference"]
    assert found["confusion_plain"].endswith("The largest: 0 as 1: 2; 5 as 6: 1.")
    assert "eca minus plain: what changes" in found["confusion_eca_difference"]
    assert "0 as 0: +2" in found["confusion_eca_difference"]
    assert "0 as 1: -2" in found["confusion_eca_difference"]


def test_means_over_three_seeds_have_a_difference_too(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"plain{seed}", None, seed, wrong=range(seed, 12), images=360)
        write_run(tmp_path / f"eca{seed}", "eca", seed, wrong=range(seed, 9), images=360)
    names = [name for name, *_ in confusion_plots(compare(find_records([tmp_path])))]
    assert names == ["confusion_plain", "confusion_eca", "confusion_eca_difference"]


def test_of_many_classes_those_with_errors_are_shown(tmp_path):
    write_run(tmp_path / "plain", wrong=(0, 1), images=50)
    labels = np.arange(100)
    predicted = labels.copy()
    predicted[[40, 60]] = (41, 59)
    path = tmp_path / "plain" / predictions.FILE
    np.savez(path, labels=labels, predicted=predicted, probability=np.full(100, 0.5))
    summary = tmp_path / "plain" / "summary.json"
    summary.write_text(summary.read_text().replace('"accuracy": 0.96', '"accuracy": 0.98'))
    ((_, _, title, _, figure),) = confusion_plots(compare(find_records([tmp_path])))
    assert "the 20 classes with the most errors" in title
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(shown) == 20
    assert {"40", "41", "59", "60"} <= set(shown)


def test_without_predictions_there_is_none(tmp_path):
    write_run(tmp_path / "plain")
    comparison = compare(find_records([tmp_path]))
    assert confusion(comparison.variants[0]) is None
    assert list(confusion_plots(comparison)) == []
    assert list(changed_images(comparison)) == []


def digits_runs(folder, plain, eca):
    """Write runs on the digits, with the given images classified wrongly."""
    from composer_attn.runs.data import DATASETS

    section = {"name": "digits", "split": "test"}
    labels = DATASETS["digits"]("test").dataset.tensors[1].numpy()
    for name, wrong in (("plain", plain), ("eca", eca)):
        attention = None if name == "plain" else name
        accuracy = 1 - len(wrong) / 360
        write_run(folder / name, attention, accuracy=accuracy, eval_dataset=section)
        write_predictions(folder / name, 360, wrong, labels)
    return compare(find_records([folder]))


def test_the_images_that_changed_are_shown(tmp_path):
    found = digits_runs(tmp_path, plain=(0, 5, 7), eca=(7, 9))
    gained, lost = changed_images(found)
    assert [gained[0], lost[0]] == ["changed_eca_right", "changed_eca_wrong"]
    assert "eca, seed 17: 2 images now right that plain had wrong" in gained[2]
    assert "1 images now wrong that plain had right" in lost[2]
    assert "no. 0, " in gained[3]
    assert "no. 5, " in gained[3]
    assert "no. 7, " not in gained[3]  # wrong before and after
    assert "no. 9, " in lost[3]
    assert len([axes for axes in gained[4].axes if axes.images]) == 2


def test_other_data_show_no_images(tmp_path):
    write_run(tmp_path / "plain", wrong=(1,), images=50)
    section = {"name": "digits", "split": "test"}
    for name in ("plain", "eca"):
        attention = None if name == "plain" else name
        folder = tmp_path / "other" / name
        write_run(folder, attention, wrong=range(len(name)), images=360, eval_dataset=section)
    # The labels in these files are not those of the digits.
    assert list(changed_images(compare(find_records([tmp_path / "other"])))) == []
    for name in ("plain", "eca"):
        attention = None if name == "plain" else name
        gone = {"name": "image_folder", "root": str(tmp_path / "gone")}
        folder = tmp_path / "gone_data" / name
        write_run(folder, attention, wrong=range(len(name)), images=50, eval_dataset=gone)
    assert list(changed_images(compare(find_records([tmp_path / "gone_data"])))) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_go_from_black_to_white(channels):
    import torch

    image = torch.linspace(-1, 1, channels * 4).view(channels, 2, 2)
    picture = as_picture(image)
    assert picture.shape == (2, 2, 3)
    assert (picture.min(), picture.max()) == (0.0, 1.0)
    white = as_picture(torch.full((channels, 2, 2), 255, dtype=torch.uint8))
    assert (white == 1).all()
