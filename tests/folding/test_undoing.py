"""unfold_norms restores everything bit for bit; also in copies and files of folded networks."""

import copy
import io

import pytest
import torch
from torch import nn
from torchvision import models

from composer_attn import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    detach_attention,
    fold_norms,
    fuse_attention,
    plan_folding,
    unfold_norms,
    unfuse_attention,
)
from composer_attn.errors import ModelError, NothingFoldedWarning
from tests import snapshots
from tests.folding.networks import make
from tests.folding.test_numbers import each_attention, each_network

each_placement = pytest.mark.parametrize("placement", ["conv", "norm"])


@each_network
@each_attention
@each_placement
def test_everything_is_back_to_the_bit(name, applying, placement):
    model, x = make(name)
    applying(model, placement=placement)
    before, expected = snapshots.of_model(model), model(x)
    # A class of ours lives as long as something uses it: that of an attended norm is made again.
    kinds = {module: type(module) for module in model.modules()}
    fold_norms(model)
    assert unfold_norms(model) == [pair.norm for pair in plan_folding(model).folded]
    assert snapshots.of_model(model) == before
    assert {module: type(module) for module in model.modules()} == kinds
    assert torch.equal(model(x), expected)
    assert unfold_norms(model) == []


def test_planning_changes_nothing():
    model, _ = make("inverted")
    apply_eca(model, min_channels=8)
    fuse_attention(model, backend="reference")
    before = snapshots.of_model(model)
    plan = plan_folding(model)
    assert len(plan.folded) == 7
    assert snapshots.of_model(model) == before


@each_attention
@each_placement
def test_a_copy_is_folded_and_the_model_left_as_it_is(applying, placement):
    model, x = make("inverted")
    applying(model, placement=placement)
    before, expected = snapshots.of_model(model), model(x)
    folded = fold_norms(model, inplace=False)
    assert snapshots.of_model(model) == before
    torch.testing.assert_close(folded(x), expected)
    assert unfold_norms(folded)
    assert snapshots.frozen(folded.state_dict()) == snapshots.frozen(model.state_dict())


@each_attention
@each_placement
def test_copied_and_pickled_it_computes_the_same_and_unfolds(applying, placement):
    model, x = make("bias")
    applying(model, placement=placement)
    state, expected = snapshots.frozen(model.state_dict()), model(x)
    fold_norms(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), model(x))
        assert snapshots.frozen(other.state_dict()) == snapshots.frozen(model.state_dict())
        assert len(unfold_norms(other)) == 5
        assert torch.equal(other(x), expected)
        assert snapshots.frozen(other.state_dict()) == state


@each_attention
def test_a_fused_network_is_folded_and_fused_again(applying):
    model, x = make("inverted")
    applying(model)
    fuse_attention(model, backend="reference")
    before, expected = snapshots.of_model(model), model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected)
    unfold_norms(model)
    after = snapshots.of_model(model)
    # Classes of fused modules are made again.
    assert [row[3:] for row in after[0]] == [row[3:] for row in before[0]]
    assert after[1:] == before[1:]
    assert torch.equal(model(x), expected)
    assert fuse_attention(model, backend="reference").fused


def test_a_network_fused_with_its_own_attention_is_folded_and_fused_again():
    model = models.efficientnet_b0(num_classes=4).eval()
    x = torch.randn(1, 3, 32, 32)
    before = len(fuse_attention(model, backend="reference", norms=True).fused)
    fused, classes = model(x), [type(module) for module in model.modules()]
    fold_norms(model)
    torch.testing.assert_close(model(x), fused, rtol=1e-3, atol=1e-4)
    unfold_norms(model)
    assert [type(module) for module in model.modules()] == classes
    assert len(unfuse_attention(model)) == before == 16


def test_weights_in_another_precision_come_back_in_it():
    model, x = make("inverted")
    apply_squeeze_excite(model, 4, min_channels=8)
    expected = copy.deepcopy(model).float().state_dict()
    fold_norms(model)
    model.float()
    unfold_norms(model)
    assert snapshots.frozen(model.state_dict()) == snapshots.frozen(expected)
    assert model(x.float()).isfinite().all()


@pytest.mark.parametrize("what", ["weight", "bias", "columns", "shift"])
def test_weights_changed_meanwhile_are_not_thrown_away(what):
    model, x = make("bias")
    apply_squeeze_excite(model, 4, min_channels=8)
    fold_norms(model)
    held = {
        "weight": model[3].weight,
        "bias": model[3].bias,
        "columns": model[3].attention.fc1.weight,
        "shift": model[3].folded_shift,
    }
    held[what].data[1] += 1
    expected = model(x)
    with pytest.raises(ModelError, match=r"^the weights of 1 convolutions have changed .* \(3\)"):
        unfold_norms(model)
    assert torch.equal(model(x), expected)


def test_what_is_not_folded_may_be_trained_meanwhile():
    model, _ = make("resnet")
    apply_eca(model, min_channels=8)
    fold_norms(model)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[-2] for name in trainable} == {"fc", "conv"}  # ECA's, within attention
    with torch.no_grad():
        model.fc.bias += 1
        model.conv1.attention.conv.weight += 1
    found = model.fc.bias.clone(), model.conv1.attention.conv.weight.clone()
    unfold_norms(model)
    assert torch.equal(model.fc.bias, found[0])
    assert torch.equal(model.conv1.attention.conv.weight, found[1])


def test_half_of_a_pair_cannot_be_unfolded():
    model, x = make("bias")
    fold_norms(model)
    expected = model(x)
    with pytest.raises(ModelError, match="folded with a module that is not in this model"):
        unfold_norms(model[:4])
    assert torch.equal(model(x), expected)
    assert unfold_norms(model[3:6]) == ["4"]
    torch.testing.assert_close(model(x), expected)


def test_after_unfolding_the_network_is_detached_and_trains():
    model, x = make("inverted")
    expected = model(x)
    apply_eca(model, min_channels=8)
    fold_norms(model)
    unfold_norms(model)
    detach_attention(model)
    assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_names_and_attentions_stay():
    model, _ = make("inverted")
    apply_eca(model, min_channels=8)
    names, attentions = [n for n, _ in model.named_modules()], attended_modules(model)
    fold_norms(model)
    assert [n for n, _ in model.named_modules()] == names
    assert attended_modules(model) == attentions
    assert isinstance(model[1].depthwise, nn.Conv2d)


def test_a_network_with_nothing_to_fold_is_unchanged_and_warned_about():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    before = snapshots.of_model(model)
    with pytest.warns(NothingFoldedWarning, match=r"ReLU\) follows: not a batch norm"):
        assert fold_norms(model) is model
    assert snapshots.of_model(model) == before
