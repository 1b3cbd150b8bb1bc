"""What a run writes of its predictions for each evaluation image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from composer_attn.runs.training.predictions import (
    FILE,
    Predictions,
    PredictionsWriter,
    interleaved,
    read_predictions,
)


def evaluate(writer, batches, count):
    """Let a writer see the logits and labels of an evaluation's batches."""
    dataloader = SimpleNamespace(dataset=range(count))
    writer.eval_start(SimpleNamespace(), None)
    for logits, labels in batches:
        writer.eval_after_forward(SimpleNamespace(outputs=logits, batch=(None, labels)), None)
    writer.eval_end(SimpleNamespace(dataloader=dataloader), None)


def test_they_are_those_of_the_last_evaluation(tmp_path):
    torch.manual_seed(0)
    writer = PredictionsWriter(tmp_path)
    assert read_predictions(tmp_path) is None
    evaluate(writer, [(torch.zeros(2, 3), torch.tensor([1, 1]))], 2)
    logits, labels = torch.randn(7, 3), torch.randint(3, (7,))
    evaluate(writer, [(logits[:4], labels[:4]), (logits[4:], labels[4:])], 7)
    found = read_predictions(tmp_path)
    assert found.labels.tolist() == labels.tolist()
    assert found.predicted.tolist() == logits.argmax(1).tolist()
    assert found.probability == pytest.approx(logits.softmax(1).amax(1).numpy(), abs=1e-3)
    assert found.right.sum() == (logits.argmax(1) == labels).sum()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_soft_labels_and_other_outputs_have_none(tmp_path):
    writer = PredictionsWriter(tmp_path)
    evaluate(writer, [(torch.zeros(2, 3), torch.zeros(2, 3))], 2)
    evaluate(writer, [({"boxes": []}, torch.zeros(2))], 2)
    assert list(tmp_path.iterdir()) == []


def test_of_several_ranks_they_are_in_the_order_of_the_data():
    # 7 images on 3 ranks, with two of padding at the end.
    columns = [np.array([0, 3, 6]), np.array([1, 4, 0]), np.array([2, 5, 1])]
    order, *_ = interleaved([(column, column, column) for column in columns], 7)
    assert order.tolist() == list(range(7))
    # Composer leaves padding out.
    short = [np.array([0, 3, 6]), np.array([1, 4]), np.array([2, 5])]
    order, *_ = interleaved([(column, column, column) for column in short], None)
    assert order.tolist() == list(range(7))


def test_runs_are_comparable_on_the_same_images(tmp_path):
    labels, other = np.array([0, 1, 2]), np.array([0, 1, 1])
    one = Predictions(labels, labels, labels / 3)
    assert one.comparable(Predictions(labels.copy(), other, labels / 3))
    assert not one.comparable(Predictions(other, other, labels / 3))
    assert not one.comparable(Predictions(labels[:2], other[:2], labels[:2] / 3))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 broken"])
def test_a_broken_file_is_none(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert read_predictions(tmp_path) is None
