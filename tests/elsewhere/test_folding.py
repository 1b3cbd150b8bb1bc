"""Folding a norm into a convolution if either is attended: an error, or correct results."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse as fuse_by_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from composer_attn.errors import AttentionRemovedError, ModelError
from composer_attn.functional import (
    apply_eca,
    attended_modules,
    detach_attention,
    fuse_attention,
)
from tests import snapshots
from tests.elsewhere.networks import APPLYING, Net, at_random, images

each_bias = pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
each_placement = pytest.mark.parametrize("placement", ["conv", "norm"])
each_attention = pytest.mark.parametrize("applying", APPLYING.values(), ids=APPLYING)


def attended(placement, bias=False, applying=APPLYING["eca"]):
    model = at_random(Net(bias))
    applying(model, placement=placement)
    return model


def fold_by_torch(conv, bn):
    return fuse_conv_bn_eval(conv, bn)


def fold_weights_on_a_copy(conv, bn):
    folded = copy.deepcopy(conv)
    statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    folded.weight, folded.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
    return folded


def fold_in_place(conv, bn):
    """Fold as mmcv's _fuse_conv_bn does, step by step."""
    conv_w = conv.weight
    conv_b = conv.bias if conv.bias is not None else torch.zeros_like(bn.running_mean)
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    conv.weight = nn.Parameter(conv_w * factor.reshape([conv.out_channels, 1, 1, 1]))
    conv.bias = nn.Parameter((conv_b - bn.running_mean) * factor + bn.bias)
    return conv


FOLDS = [fold_by_torch, fold_weights_on_a_copy, fold_in_place]
each_fold = pytest.mark.parametrize("fold", FOLDS, ids=lambda f: f.__name__)


@each_fold
@each_bias
@each_placement
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_folding_is_refused_before_anything_changes(fold, bias, placement, fused):
    model = attended(placement, bias)
    if fused:
        fuse_attention(model, backend="reference")
    before = snapshots.of_model(model)
    with pytest.raises(ModelError, match=r"as by folding a batch norm.*detach_attention first"):
        fold(model.conv, model.bn)
    assert snapshots.of_model(model) == before


@each_fold
@each_bias
def test_what_is_not_attended_is_folded_as_ever(fold, bias):
    model, x = at_random(Net(bias)), images()
    apply_eca(model, min_channels=8, include="block.conv2")
    expected = model(x)
    model.conv = fold(model.conv, model.bn)
    model.bn = nn.Identity()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@each_fold
def test_after_detaching_it_is_folded_as_ever(fold):
    model, x = at_random(Net()), images()
    expected = model(x)
    apply_eca(model, min_channels=8)
    detach_attention(model)
    model.conv = fold(model.conv, model.bn)
    model.bn = nn.Identity()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_new_weights_that_fold_nothing_are_taken():
    def initialize(conv, bn):  # has the norm at hand, too
        conv.weight = nn.Parameter(torch.randn_like(conv.weight))
        return bn

    def prune(conv, bn):
        conv.weight = nn.Parameter(conv.weight[:4] * bn.weight[:4].reshape(-1, 1, 1, 1))

    model = attended("conv")
    initialize(model.conv, model.bn)
    prune(model.conv, model.bn)
    assert model.conv.weight.shape[0] == 4


@each_placement
def test_a_norm_taken_away_by_identity_is_an_error(placement):
    model, x = attended(placement), images()
    expected = model(x)
    with pytest.raises((ModelError, AttentionRemovedError), match=r"^bn1, .*before the surgery"):
        model.block.bn1 = nn.Identity()
    assert torch.equal(model(x), expected)


@each_attention
@each_placement
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_the_fx_optimization_leaves_attended_pairs_alone(applying, placement, fused):
    model, x = at_random(Net()), images()
    applying(model, placement=placement, exclude="block.conv1")
    expected = model(x)
    if fused:
        fuse_attention(model, backend="reference")
    folded = fuse_by_fx(model)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) < 4  # of the pairs that are not attended
    assert folded.block.conv1.bias is not None


@each_placement
@pytest.mark.parametrize("names", [["conv", "bn"], ["conv", "bn", "relu"]], ids=len)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_fuse_modules_is_refused_clearly(placement, names, fused):
    model = attended(placement)
    if fused:
        fuse_attention(model, backend="reference")
    before = snapshots.of_model(model)
    with pytest.raises(ModelError, match=r"fuse_modules cannot fold .*Attended.*detach_attention"):
        fuse_modules(model, names, inplace=True)
    assert snapshots.of_model(model) == before


def test_fuse_modules_takes_what_is_not_attended():
    model, x = at_random(Net()), images()
    apply_eca(model, min_channels=8, include="block.conv2")
    expected = model(x)
    folded = fuse_modules(model, [["conv", "bn", "relu"], ["block.conv1", "block.bn1"]])
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


@each_attention
@each_placement
def test_the_exported_programs_fold_keeps_the_numbers(applying, placement):
    from torch.export import export
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Nothing(Quantizer):
        """Annotates nothing: what is left is the fold of norms that prepare_pt2e begins with."""

        def annotate(self, model):
            return model

        def validate(self, model):
            pass

    model, x = attended(placement, applying=applying), images()
    expected = model(x)
    program = export(model, (x,)).module()
    torch.testing.assert_close(prepare_pt2e(program, Nothing())(x), expected, rtol=1e-4, atol=1e-5)


# A detector's modules and its fuse(), as YOLO packages write them (ultralytics/nn/tasks.py and
# utils/torch_utils.py): in releases up to 8.3 a new convolution, since then the old one.
def fuse_into_a_new_one(conv, bn):
    fusedconv = (
        nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
        .requires_grad_(False)
        .to(conv.weight.device)
    )
    w_conv = conv.weight.view(conv.out_channels, -1)
    w_bn = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    fusedconv.weight.copy_(torch.mm(w_bn, w_conv).view(fusedconv.weight.shape))
    b_conv = torch.zeros(conv.weight.shape[0]) if conv.bias is None else conv.bias
    b_bn = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fusedconv.bias.copy_(torch.mm(w_bn, b_conv.reshape(-1, 1)).reshape(-1) + b_bn)
    return fusedconv


def fuse_into_the_old_one(conv, bn):
    w_conv = conv.weight.view(conv.out_channels, -1)
    w_bn = torch.diag(bn.weight.div(torch.sqrt(bn.eps + bn.running_var)))
    conv.weight.data = torch.mm(w_bn, w_conv).view(conv.weight.shape)
    b_conv = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    b_bn = bn.bias - bn.weight.mul(bn.running_mean).div(torch.sqrt(bn.running_var + bn.eps))
    fused_bias = torch.mm(w_bn, b_conv.reshape(-1, 1)).reshape(-1) + b_bn
    if conv.bias is None:
        conv.register_parameter("bias", nn.Parameter(fused_bias))
    else:
        conv.bias.data = fused_bias
    return conv.requires_grad_(False)


class Conv(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(Conv(3, 8), Conv(8, 8))

    def forward(self, x):
        return self.model(x)

    def fuse(self, verbose=True, into=fuse_into_a_new_one):
        with torch.no_grad():
            for m in self.model.modules():
                if isinstance(m, Conv) and hasattr(m, "bn"):
                    m.conv = into(m.conv, m.bn)
                    delattr(m, "bn")
                    m.forward = m.forward_fuse
        return self


each_into = pytest.mark.parametrize("into", [fuse_into_a_new_one, fuse_into_the_old_one])


@each_into
@each_attention
@each_placement
@pytest.mark.parametrize("part", ["whole", "inside"])
def test_a_detectors_fuse_is_refused(into, applying, placement, part):
    model = at_random(Detector())
    applying(model if part == "whole" else model.model, placement=placement)
    sites = list(attended_modules(model))
    with pytest.raises((ModelError, AttentionRemovedError), match="detach_attention first"):
        model.fuse(into=into)
    assert list(attended_modules(model)) == sites
    assert all(hasattr(m, "bn") for m in model.model)


@each_into
def test_a_detectors_fuse_before_the_surgery_and_after_detaching(into):
    model, x = at_random(Detector()), images()
    expected = model(x)
    apply_eca(model, min_channels=8)
    before = copy.deepcopy(model)
    assert sorted(vars(before)) == sorted(vars(model))
    detach_attention(model)
    assert "fuse" not in vars(model)
    torch.testing.assert_close(model.fuse(into=into)(x), expected, rtol=1e-4, atol=1e-5)
    apply_eca(model, min_channels=8)
    assert len(attended_modules(model)) == 2
    with pytest.raises(ModelError, match=r"^Detector\.fuse\(\) would fold norms or merge branches"):
        before.fuse()


def test_a_part_detached_by_itself_may_be_fused_from_above():
    model, x = at_random(Detector()), images()
    expected = model(x)
    apply_eca(model, min_channels=8)
    detach_attention(model.model)
    torch.testing.assert_close(model.fuse()(x), expected, rtol=1e-4, atol=1e-5)


def test_a_fuse_that_takes_feature_maps_is_another_thing():
    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

        def fuse(self, a, b):
            return a + b

        def forward(self, x):
            return self.fuse(self.a(x), self.b(x))

    model, x = Fusion(), images()
    apply_eca(model, min_channels=8)
    assert torch.equal(model(x), model.a(x) + model.b(x))


TIMM = {
    "mobileone_s0": {},
    "repvgg_a0": {},
    "repghostnet_050": {},
    "fastvit_t8": {},
    "repvit_m0_9": {},
    "levit_conv_128s": {},
    "efficientvit_m0": {},
}


@each_placement
@pytest.mark.parametrize("name", TIMM)
def test_timms_reparameterize_model_is_refused(name, placement):
    timm = pytest.importorskip("timm")
    model = at_random(timm.create_model(name, num_classes=3))
    apply_eca(model, min_channels=16, placement=placement)
    before = list(attended_modules(model))
    with pytest.raises((ModelError, AttentionRemovedError), match="detach_attention first"):
        timm.utils.reparameterize_model(model)
    assert list(attended_modules(model)) == before
    detach_attention(model)
    timm.utils.reparameterize_model(model)
