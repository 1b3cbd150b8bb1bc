"""CIFAR's files: read where they are, refused where they are not."""

import pytest
import torch
import torchvision

from composer_attn.errors import ArgumentError
from composer_attn.runs.data import build_loader
from composer_attn.runs.data.cifar import cifar10, cifar100
from tests.pictures import write_cifar10


def test_files_are_read_and_augmented_to_train_only(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)
    write_cifar10(tmp_path)
    train, test = (cifar10(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train.dataset), len(test.dataset)) == (40, 8)
    assert (train.random, test.random) == (True, False)
    assert train.num_classes == 10
    loader = build_loader(test, 4, train=False, seed=0)
    raw, labels = next(iter(loader.dataloader))
    assert torch.equal(raw[0], torch.as_tensor(test.dataset.data[0]).permute(2, 0, 1))
    assert labels.tolist() == test.dataset.targets[:4]
    images, _ = loader.microbatch_transforms((raw, labels))
    expected = (raw[0, 0, 0, 0] / 255 - 0.4914) / 0.2470
    torch.testing.assert_close(images[0, 0, 0, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dataset", [cifar10, cifar100])
def test_missing_files_say_how_to_get_them(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not hold CIFAR.*download: true downloads"):
        dataset(str(tmp_path), "train")


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match="train or test; got 'val'"):
        cifar10(str(tmp_path), "val")
