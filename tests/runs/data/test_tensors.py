"""Datasets that are tensors from the start: digits and synthetic images."""

import torch

from composer_attn.runs.data import build_loader
from composer_attn.runs.data.digits import digits
from composer_attn.runs.data.synthetic import synthetic


def test_digits_are_split_in_equal_shares_without_overlap():
    train, test = digits("train").dataset, digits("test", size=16).dataset
    assert (len(train), len(test)) == (1437, 360)
    image, _ = train[0]
    assert image.shape == (3, 32, 32)
    assert test[0][0].shape == (3, 16, 16)
    assert -1 <= image.min() < image.max() <= 1
    counts = torch.bincount(test.tensors[1])
    assert counts.min() >= 34
    assert counts.max() <= 37
    seen = {
        tuple(row) for row in digits("train", size=8).dataset.tensors[0][:, 0].flatten(1).tolist()
    }
    assert not any(
        tuple(row) in seen
        for row in digits("test", size=8).dataset.tensors[0][:, 0].flatten(1).tolist()
    )


def test_synthetic_images_are_the_same_every_time():
    first, second = (synthetic(num_samples=4, num_classes=3, size=8).dataset for _ in range(2))
    assert torch.equal(first.tensors[0], second.tensors[0])
    assert first.tensors[0].shape == (4, 3, 8, 8)
    assert first.tensors[1].max() < 3


def test_the_order_of_batches_depends_on_the_seed_alone():
    data = synthetic(num_samples=16, size=2)

    def order(seed):
        torch.manual_seed(torch.initial_seed() + 1)
        loader = build_loader(data, 4, train=True, seed=seed).dataloader
        return torch.cat([labels for _, labels in loader])

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
