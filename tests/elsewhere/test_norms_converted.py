"""Norms that others exchange for synchronized or frozen ones after the surgery stay attended."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from composer_attn.errors import AttentionRemovedError, ModelError
from composer_attn.functional import (
    apply_eca,
    attended_modules,
    detach_attention,
    fuse_attention,
    plan_eca,
)
from tests.elsewhere.networks import APPLYING, Net, at_random, images


def synchronized(model):
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def synchronized_by_timm(model):
    return pytest.importorskip("timm.layers").convert_sync_batchnorm(model)


def frozen_by_timm(model):
    return pytest.importorskip("timm.layers").freeze_batch_norm_2d(model)


def frozen_by_a_detector(module):
    """Freeze as detectron2's FrozenBatchNorm2d.convert_frozen_batchnorm does, step by step."""
    res = module
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        res = FrozenBatchNorm2d(module.num_features)
        res.weight.data = module.weight.data.clone().detach()
        res.bias.data = module.bias.data.clone().detach()
        res.running_mean.data = module.running_mean.data
        res.running_var.data = module.running_var.data
        res.eps = module.eps
    else:
        for name, child in module.named_children():
            new_child = frozen_by_a_detector(child)
            if new_child is not child:
                res.add_module(name, new_child)
    return res


def by_assignment(model):
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, frozen_by_a_detector(child))
    return model


CONVERSIONS = [
    synchronized,
    synchronized_by_timm,
    frozen_by_timm,
    frozen_by_a_detector,
    by_assignment,
]
each_conversion = pytest.mark.parametrize("convert", CONVERSIONS, ids=lambda f: f.__name__)
each_attention = pytest.mark.parametrize("applying", APPLYING.values(), ids=APPLYING)
each_placement = pytest.mark.parametrize(
    "placement", ["conv", "norm", "residual", "identity", "pre", "post"]
)


@each_conversion
@each_attention
@each_placement
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_same_numbers_and_the_same_attention(convert, applying, placement, fused):
    model, x = at_random(Net()), images()
    applying(model, placement=placement)
    expected, attentions = model(x), attended_modules(model)
    if fused:
        fuse_attention(model, backend="reference")
    converted = convert(model)
    assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
    torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)
    assert attended_modules(converted) == attentions


@each_conversion
def test_what_was_converted_is_detached_and_copied_like_any_other(convert):
    model, x = at_random(Net()), images()
    plain = copy.deepcopy(model)
    apply_eca(model, min_channels=8, placement="norm")
    converted = convert(model)
    duplicate = copy.deepcopy(converted)
    assert torch.equal(duplicate(x), converted(x))
    assert len(detach_attention(converted)) == 4
    kinds = [type(m) for m in converted.modules()]
    assert kinds == [type(m) for m in convert(plain).modules()]
    torch.testing.assert_close(converted(x), plain(x))
    assert len(attended_modules(duplicate)) == 4


def test_norms_go_back_from_frozen_ones():
    layers, x = pytest.importorskip("timm.layers"), images()
    model = at_random(Net())
    apply_eca(model, min_channels=8, placement="norm")
    expected = model(x)
    thawed = layers.unfreeze_batch_norm_2d(layers.freeze_batch_norm_2d(model)).eval()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in thawed.modules()) == 4
    torch.testing.assert_close(thawed(x), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_in_the_place_of_an_attended_norm_is_attended():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), images()
    apply_eca(model, min_channels=8, placement="norm")
    norm = nn.GroupNorm(2, 8)
    plain, attention = copy.deepcopy(norm), attended_modules(model)["1"]
    model[1] = norm
    assert torch.equal(model(x), attention(plain(model[0](x))))


@pytest.mark.parametrize(
    "new",
    [None, nn.Identity(), nn.BatchNorm2d(4), nn.ReLU()],
    ids=lambda new: type(new).__name__,
)
def test_anything_else_in_an_attended_norms_place_is_an_error(new):
    model, x = at_random(Net()), images()
    apply_eca(model, min_channels=8, placement="norm")
    expected = model(x)
    with pytest.raises(AttentionRemovedError, match=r"^bn1, an attended BatchNorm2d, is replaced"):
        model.block.bn1 = new
    assert torch.equal(model(x), expected)
    model.block.add_module("bn1", model.block.bn1)
    assert torch.equal(model(x), expected)


def test_a_wrapper_may_take_an_attended_modules_place():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model, x = at_random(Net()), images()
    apply_eca(model, min_channels=8)
    expected = model(x)
    model.block.conv1 = Wrapper(model.block.conv1)
    assert torch.equal(model(x), expected)
    assert "block.conv1.inner" in attended_modules(model)


def test_another_convolution_in_an_attended_ones_place_is_an_error():
    model = at_random(Net())
    apply_eca(model, min_channels=8)
    with pytest.raises(
        AttentionRemovedError, match=r"conv1, an attended Conv2d.*before the surgery"
    ):
        model.block.conv1 = nn.Conv2d(8, 8, 3, padding=1)


def test_parts_of_a_network_may_go_with_their_attention():
    model = at_random(Net())
    apply_eca(model, min_channels=8)
    model.block = nn.Identity()
    assert list(attended_modules(model)) == ["conv"]


REPORTING = {
    "attended_modules": attended_modules,
    "apply": lambda model: apply_eca(model, min_channels=8),
    "plan": lambda model: plan_eca(model, min_channels=8),
    "fuse": fuse_attention,
}


@pytest.mark.parametrize("function", REPORTING.values(), ids=REPORTING)
@pytest.mark.parametrize("way", ["class", "tables"])
def test_attention_under_a_module_that_attends_no_more_is_reported(function, way):
    model = at_random(Net())
    plain, x = copy.deepcopy(model), images()
    apply_eca(model, min_channels=8)
    if way == "class":
        model.block.conv1.__class__ = nn.Conv2d
    else:
        rebuilt = object.__new__(nn.Conv2d)
        vars(rebuilt).update(vars(model.block.conv1))
        model.block._modules["conv1"] = rebuilt
    with pytest.raises(ModelError, match=r"^1 modules hold attention.*block\.conv1 \(Conv2d\)"):
        function(model)
    assert len(detach_attention(model)) == 4
    assert attended_modules(model) == {}
    assert torch.equal(model(x), plain(x))
    assert list(model.state_dict()) == list(plain.state_dict())


def test_a_custom_attention_module_is_not_an_orphan():
    from composer_attn.attention import SqueezeExcitation

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention = nn.Conv2d(3, 8, 3), SqueezeExcitation(8, 2)

    assert attended_modules(Own()) == {}
