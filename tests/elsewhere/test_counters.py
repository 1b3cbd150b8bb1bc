"""Counters of multiply-accumulates that know layers by their exact type, on expanded copies."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from composer_attn import apply_eca, apply_squeeze_excite, expanded_copy, fuse_attention

SHAPE = (1, 3, 64, 64)


def of_thop(model: nn.Module) -> float:
    thop = pytest.importorskip("thop")
    return thop.profile(model, (torch.zeros(SHAPE),), verbose=False)[0]


def of_ptflops(model: nn.Module) -> float:
    ptflops = pytest.importorskip("ptflops")
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    return ptflops.get_model_complexity_info(model, SHAPE[1:], **options)[0]


def of_torchinfo(model: nn.Module) -> float:
    torchinfo = pytest.importorskip("torchinfo")
    return torchinfo.summary(model, SHAPE, verbose=0).total_mult_adds


def of_fvcore(model: nn.Module) -> float:
    analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis(model, torch.zeros(SHAPE))
    return analysis.unsupported_ops_warnings(False).total()


# And what of the others' operations each counts besides convolutions and matrix products, as a
# share: norms, ReLUs, biases, pooling.
COUNTERS = {"thop": of_thop, "ptflops": of_ptflops, "torchinfo": of_torchinfo, "fvcore": of_fvcore}
BESIDES = {"thop": 0.02, "ptflops": 0.02, "torchinfo": 0.02, "fvcore": 0.02}


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("apply", [apply_squeeze_excite, apply_eca])
@pytest.mark.parametrize("fused", [False, True])
def test_an_expanded_copy_is_counted_right(counter, apply, fused):
    model = resnet18().eval()
    plain = COUNTERS[counter](resnet18().eval())
    apply(model, min_channels=1)
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        model(torch.zeros(SHAPE))
    if fused:
        fuse_attention(model, backend="reference")
    found = COUNTERS[counter](expanded_copy(model))
    right = torchs.get_total_flops() // 2
    assert right <= found <= right * (1 + BESIDES[counter])
    assert found > plain


@pytest.mark.parametrize("counter", ["thop", "torchinfo"])
def test_the_attended_network_itself_would_be_counted_far_too_cheap(counter):
    model = resnet18().eval()
    apply_squeeze_excite(model, min_channels=1)
    right = COUNTERS[counter](expanded_copy(model))
    assert COUNTERS[counter](model) < right / 20
