"""Maps with more elements than 32 bits count, and more tiles than one axis of a grid holds."""

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention
from composer_attn.ops import attend_then_normalize


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("last", [False, True], ids=["ncdhw", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 16, 160, 256, 256), (1, 40, 384, 384, 384)])
def test_a_map_of_any_size_agrees_at_its_ends(shape, last):
    torch.manual_seed(0)
    channels = shape[1]
    attention, norm = EfficientChannelAttention(channels).cuda(), nn.BatchNorm3d(channels).cuda()
    nn.init.normal_(norm.weight)
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
    if last:
        x = x.to(memory_format=torch.channels_last_3d)
    x.normal_().requires_grad_()
    y = attend_then_normalize(x, attention, norm, "auto", relu=True)
    dy = torch.zeros_like(y)
    ends = (slice(None), slice(None), slice(-2, None))
    dy[ends] = 1
    (dx,) = torch.autograd.grad(y, x, dy)
    with torch.no_grad():
        # A part at a time: a float32 copy of everything would not fit beside the rest.
        means = torch.stack([x[:, c].double().mean((1, 2, 3)) for c in range(channels)], 1)
        squares = torch.stack(
            [x[:, c].double().square().mean((1, 2, 3)) for c in range(channels)], 1
        )
        s = attention.excitation_of(means.float()).double()
        mu = (s * means).mean(0)
        var = (s * s * squares).mean(0) - mu.square()
        w = norm.weight.double() * (var + norm.eps).rsqrt()
        by = (..., None, None, None)
        expected = (
            x[ends].double() * (s * w)[by] + (norm.bias - mu * w)[:, None, None, None]
        ).relu()
    assert float((y[ends].double() - expected).abs().max()) < 2**-6 * float(expected.abs().max())
    assert torch.isfinite(dx[ends]).all()
    assert float(dx[ends].abs().amax()) > 0
