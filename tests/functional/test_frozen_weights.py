"""Weights for frozen norms, which count no batches, and for heads with several rows a class."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from composer_attn import load_weights
from composer_attn.errors import CheckpointError


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


def test_a_batch_norms_weights_load_into_a_frozen_one(tmp_path):
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(FrozenBatchNorm2d(4))
    assert load_weights(model, saved(nn.Sequential(norm), tmp_path / "norm.pt")) == ()
    assert torch.equal(model[0].running_mean, norm.running_mean)
    assert torch.equal(model[0].running_var, norm.running_var)


def test_other_counts_are_of_another_network(tmp_path):
    path = saved(nn.Sequential(nn.BatchNorm2d(4)), tmp_path / "norm.pt")
    with pytest.raises(CheckpointError, match=r"0\.num_batches_tracked is not in the model"):
        load_weights(nn.Sequential(nn.GroupNorm(2, 4)), path)


def head(classes):
    return nn.ModuleDict({"score": nn.Linear(8, classes), "box": nn.Linear(8, 4 * classes)})


def test_layers_with_four_rows_a_class_are_part_of_a_new_classifier(tmp_path):
    path = saved(head(91), tmp_path / "head.pt")
    model = head(4)
    left = load_weights(model, path, new_classifier=True)
    assert set(left) == {f"{n}.{p}" for n in ("score", "box") for p in ("weight", "bias")}


def test_layers_that_differ_in_other_ratios_are_of_another_network(tmp_path):
    other = nn.ModuleDict({"score": nn.Linear(8, 91), "box": nn.Linear(8, 90)})
    path = saved(other, tmp_path / "head.pt")
    with pytest.raises(CheckpointError, match="weights of a different network"):
        load_weights(head(4), path, new_classifier=True)
