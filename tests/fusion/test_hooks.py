"""Hooks and modules replaced after the fusion: each call checks whether it may still be fused."""

import pytest
import torch
from torch import nn

from composer_attn.functional import fuse_attention
from tests.fusion.networks import Net, pair
from tests.fusion.test_dataflow import Nested
from tests.fusion.test_numbers import assert_equal, gradients

WATCHED = [
    "conv1",
    "conv1.attention",
    "conv1.attention.fc1",
    "bn1",
    "relu",
    "layers.0.conv1",
    "layers.0.bn1",
    "layers.0.bn2",
    "layers.0.relu",
    "layers.0.downsample",
    "layers.0.downsample.0",
    "layers.0.downsample.1",
]
REGISTRATIONS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


def seen_by(model, name, registration, x):
    """Run forward and backward with a hook on a module; return what the hook saw."""
    seen = []

    def hook(module, *tensors):
        flat = [t for each in tensors for t in (each if isinstance(each, tuple) else (each,))]
        seen.extend(t.detach().clone() for t in flat if t is not None)

    handle = getattr(model.get_submodule(name), registration)(hook)
    y = model(x)
    y.square().sum().backward()
    handle.remove()
    return [y.detach(), *seen]


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("name", WATCHED)
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_a_hook_sees_what_it_would_see_unfused(name, registration, placement):
    if placement == "norm":
        name = name.replace("conv1.attention", "bn1.attention")
    plain, fused = pair(Net, min_channels=8, placement=placement)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64)
    # In-place ReLUs and full backward hooks do not go together, fused or not.
    for model in (plain, fused):
        for module in model.modules():
            module.inplace = False
    expected, found = (seen_by(model, name, registration, x) for model in (plain, fused))
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        assert_equal({"": a}, {"": b}, 1e-11)
    assert_equal(gradients(fused), gradients(plain))
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-11, atol=1e-11)
    assert_equal(fused.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", ["branches.a", "drop"])
def test_a_hook_on_the_way_from_convolution_to_norm_sees_attended_output(name):
    plain, fused = pair(Nested)
    x, seen = torch.randn(2, 3, 4, 4, dtype=torch.float64), []
    for model in (plain, fused):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, y: seen.append(y.detach().clone()))
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-12, atol=1e-12)


def test_without_hooks_the_attention_is_not_called_and_with_one_it_is():
    _, fused = pair(Net, min_channels=8)
    calls, x = [], torch.randn(2, 3, 9, 7, dtype=torch.float64)
    original = type(fused.conv1.attention).forward
    handle = fused.bn1.register_forward_hook(lambda *_: None)
    fused.conv1.attention.forward = lambda x: calls.append(1) or original(fused.conv1.attention, x)
    fused(x)
    assert calls == [1]
    handle.remove()
    del fused.conv1.attention.forward
    fused(x)
    assert calls == [1]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("bn1", lambda: nn.BatchNorm2d(8)),
        ("bn1", lambda: nn.GroupNorm(2, 8)),
        ("conv1", lambda: nn.Conv2d(3, 8, 3, padding=1)),
        ("relu", nn.Tanh),
        ("conv1.attention", nn.Identity),
    ],
)
def test_a_module_exchanged_after_the_fusion_is_used_as_it_is(name, other):
    plain, fused = pair(Net, min_channels=8)
    module, x = other().double(), torch.randn(2, 3, 9, 7, dtype=torch.float64)
    for model in (plain, fused):
        parent, _, child = name.rpartition(".")
        # Bypassing nn.Module.__setattr__, which does not let attention be dropped silently.
        model.get_submodule(parent)._modules[child] = module
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


def test_synchronized_norms_made_after_the_fusion_are_used_as_they_are():
    plain, fused = (model.eval() for model in pair(Net, min_channels=8))
    fused = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert isinstance(fused.bn1, nn.SyncBatchNorm)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_forward_that_goes_another_way_after_the_fusion_computes_that():
    plain, fused = pair(Nested)
    for model in (plain, fused):
        model.branches["a"].append(nn.Tanh())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    (site,) = fuse_attention(fused, backend="reference").sites
    assert "follows: not a norm" in site.reason
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


def test_an_error_inside_leaves_nothing_open():
    plain, fused = pair(Net, min_channels=8)
    with pytest.raises(RuntimeError):
        fused(torch.randn(2, 5, 9, 7, dtype=torch.float64))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused.conv1(x), plain.conv1(x), rtol=1e-12, atol=1e-12)
