"""Fusions undone to the last attribute; copies, files, and other surgeries on fused networks."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from composer_attn.errors import ArgumentError, ModelError, NothingAttendedWarning
from composer_attn.functional import (
    apply_eca,
    attended_modules,
    detach_attention,
    fuse_attention,
    plan_eca,
    unfuse_attention,
)
from composer_attn.fusion.fused_norms import is_fused
from tests import snapshots
from tests.fusion.networks import Net, each_shape, fused_net, pair
from tests.networks import MIN_CHANNELS
from tests.surgeries import train_step


def through_a_file(model, path):
    torch.save(model, path / "model.pt")
    return torch.load(path / "model.pt", weights_only=False)


CLONES = {
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "pickle": lambda model, path: pickle.loads(pickle.dumps(model)),
    "file": through_a_file,
}
each_clone = pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)


def fused_modules(model) -> list[str]:
    return [name for name, module in model.named_modules() if is_fused(module)]


@each_shape
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_unfusing_gives_back_every_class_and_attribute(build, shape, placement):
    model = build()
    apply_eca(model, min_channels=8, placement=placement)
    before, keys = snapshots.of_model(model), list(model.state_dict())
    plan = fuse_attention(model, backend="reference")
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == [name for name, *_ in before[1]]
    # An attention of the network's own that is not fused with a norm is as it was.
    ours = attended_modules(model)
    names = [site.name for site in plan.sites if site.fused or site.name in ours]
    assert unfuse_attention(model) == names
    assert snapshots.of_model(model) == before
    assert unfuse_attention(model) == []


def test_fusing_again_changes_nothing():
    model = fused_net()
    classes, plan = [type(module) for module in model.modules()], fuse_attention(model, "reference")
    assert fuse_attention(model, "reference") == plan
    assert [type(module) for module in model.modules()] == classes
    assert len(fused_modules(model)) == 7


@each_clone
def test_copies_are_fused_and_apart(clone, tmp_path):
    model, x = fused_net(), torch.randn(2, 3, 9, 7, dtype=torch.float64)
    duplicate = clone(model, tmp_path)
    assert fused_modules(duplicate) == fused_modules(model)
    train_step(model, torch.optim.SGD(model.parameters(), 0.1), x)
    train_step(duplicate, torch.optim.SGD(duplicate.parameters(), 0.1), x)
    assert torch.equal(duplicate(x), model(x))
    unfuse_attention(duplicate)
    assert fused_modules(duplicate) == []
    assert len(fused_modules(model)) == 7
    torch.testing.assert_close(duplicate(x), model(x), rtol=1e-12, atol=1e-12)


@each_clone
@pytest.mark.parametrize("part", ["conv1", "bn1", "relu", "layers.0", "layers.0.downsample"])
def test_copies_of_a_part_are_whole(clone, part, tmp_path):
    plain, fused = (model.eval() for model in pair(Net, min_channels=8))
    duplicate, expected = clone(fused.get_submodule(part), tmp_path), plain.get_submodule(part)
    x = torch.randn(2, 3 if part == "conv1" else 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(duplicate(x), expected(x), rtol=1e-12, atol=1e-12)
    held = {id(module) for module in fused.modules()}
    assert not held & {id(value) for m in duplicate.modules() for value in vars(m).values()}


def test_averaged_models_average():
    model, x = fused_net(), torch.randn(2, 3, 9, 7, dtype=torch.float64)
    average = AveragedModel(model)
    train_step(model, torch.optim.SGD(model.parameters(), 0.1), x)
    average.update_parameters(model)
    torch.testing.assert_close(average(x), model(x), rtol=1e-9, atol=1e-9)


def test_checkpoints_go_both_ways(tmp_path):
    plain, fused = pair(Net, min_channels=8)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    train_step(fused, torch.optim.SGD(fused.parameters(), 0.1), x)
    torch.save(fused.state_dict(), tmp_path / "state.pt")
    plain.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(plain.eval()(x), fused.eval()(x), rtol=1e-12, atol=1e-12)
    fused.load_state_dict(plain.state_dict())


def test_detaching_takes_fusions_apart_first():
    torch.manual_seed(0)
    model = Net()
    before = snapshots.of_model(model)
    apply_eca(model, min_channels=8)
    fuse_attention(model, backend="reference")
    assert len(detach_attention(model)) == 7
    assert snapshots.of_model(model) == before


def test_other_surgeries_work_on_a_fused_network_and_leave_it_fused():
    plain, fused = pair(Net, min_channels=MIN_CHANNELS, include="layers.0.*")
    assert plan_eca(fused, min_channels=8) == plan_eca(plain, min_channels=8)
    kept = fused_modules(fused)
    for model in (plain, fused):
        torch.manual_seed(1)
        apply_eca(model, min_channels=8, placement="residual")
    assert len(attended_modules(fused)) == len(attended_modules(plain)) == 5
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    # The norm that is attended now is no longer fused with the convolution before it.
    assert set(kept) - set(fused_modules(fused)) == {"layers.0.bn2"}


def test_a_surgery_that_fails_leaves_the_network_fused():
    model = fused_net()
    kept = fused_modules(model)
    with pytest.raises(ArgumentError):
        apply_eca(model, min_channels=8, kernel_size=2)
    assert fused_modules(model) == kept


def test_what_was_extended_since_cannot_be_unfused():
    model = fused_net()
    nn.utils.parametrize.register_parametrization(model.bn1, "weight", nn.Identity())
    kept = [type(module) for module in model.modules()]
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    for undo in (unfuse_attention, detach_attention, fuse_attention):
        with pytest.raises(ModelError, match="the class of bn1 was extended after it was fused"):
            undo(model)
        assert [type(module) for module in model.modules()] == kept
    model(x)
    nn.utils.parametrize.remove_parametrizations(model.bn1, "weight")
    assert len(unfuse_attention(model)) == 7


def test_bad_arguments_are_errors_and_nothing_to_fuse_a_warning():
    with pytest.raises(ArgumentError, match="backend must be one of auto, reference"):
        fuse_attention(Net(), backend="cuda")
    with pytest.raises(ArgumentError, match=r"model must be a torch\.nn\.Module"):
        fuse_attention("resnet50")
    with pytest.raises(ModelError, match="OptimizedModule"):
        fuse_attention(torch.compile(fused_net()))
    with pytest.warns(NothingAttendedWarning, match="the model has no added attention"):
        assert fuse_attention(Net()).sites == ()
