"""Half precision, autocast, memory formats, strides."""

import pytest
import torch

from tests import equations
from tests.attention.attentions import each_attention, each_spatial

each_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
each_format = pytest.mark.parametrize(
    ("spatial", "memory_format"),
    [
        ((5,), torch.contiguous_format),
        ((3, 4), torch.contiguous_format),
        ((2, 3, 4), torch.contiguous_format),
        ((3, 4), torch.channels_last),
        ((2, 3, 4), torch.channels_last_3d),
    ],
    ids=str,
)


def between_two_halves(dtype):
    """Build maps whose averages lie half-way between two numbers of a 16-bit format."""
    step = torch.finfo(dtype).eps
    x = torch.ones(2, 6, 64, 64, dtype=dtype)
    x[:, 3:, ::2] += step
    return x


@each_attention
@each_half
def test_half_precision_inputs_are_pooled_in_float32(build, dtype):
    x = between_two_halves(dtype)
    attention = build(6)  # float32 parameters: what is lost is lost in pooling
    expected = equations.excitation(attention, x)
    rounded = equations.excitation(attention, x.mean((2, 3))[..., None])
    scales = attention.excitation(x)
    assert scales.dtype == torch.float32
    assert (rounded - expected).abs().max() > 1e-5
    torch.testing.assert_close(scales.double(), expected, rtol=1e-6, atol=1e-6)
    assert attention(x).dtype == dtype


@each_attention
@each_half
def test_modules_in_half_precision_stay_near_float64(build, dtype):
    attention = build(6, dtype=dtype)
    x = (10 + torch.randn(2, 6, 64, 64)).to(dtype)
    expected = equations.scale(x, equations.excitation(attention, x))
    y = attention(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=10 * torch.finfo(dtype).eps, atol=0)


@each_attention
def test_sums_beyond_the_range_of_float16_do_not_overflow(build):
    x = torch.full((1, 6, 32, 32), 6e4, dtype=torch.float16)
    attention = build(6)
    expected = equations.excitation(attention, x)
    torch.testing.assert_close(attention.excitation(x).double(), expected)


@each_attention
@each_half
def test_pooling_is_in_float32_under_autocast(build, dtype, monkeypatch):
    attention, seen = build(6), []
    logits = attention.logits
    monkeypatch.setattr(attention, "logits", lambda means: seen.append(means) or logits(means))
    x = between_two_halves(dtype)
    with torch.autocast("cpu", dtype=dtype):
        y = attention(x)
    assert y.dtype == dtype
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0].double(), equations.pool(x))


@each_attention
def test_float32_maps_stay_float32_under_autocast(build):
    attention, x = build(6), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, attention(x), rtol=0.05, atol=0.02)


@each_attention
@each_format
def test_the_memory_format_of_the_input_is_kept(build, spatial, memory_format):
    plain = torch.randn(2, 6, *spatial)
    x = plain.contiguous(memory_format=memory_format).requires_grad_()
    attention = build(6)
    y = attention(x)
    assert y.stride() == x.stride()
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, attention(plain))
    y.square().sum().backward()
    assert x.grad.stride() == x.stride()


@each_attention
@each_format
@pytest.mark.parametrize("start", ["paper", "identity"])
def test_gradients_have_the_strides_of_their_parameters(build, spatial, memory_format, start):
    # DDP warns where they have not, and copies every time.
    attention = build(6, start=start)
    x = torch.randn(2, 6, *spatial).contiguous(memory_format=memory_format)
    attention(x).square().sum().backward()
    for parameter in attention.parameters():
        assert parameter.grad.stride() == parameter.stride()


@each_attention
@each_spatial
def test_inputs_need_not_be_contiguous(build, spatial):
    attention, x = build(6).double(), torch.randn(4, 12, *spatial, dtype=torch.float64)
    view = x[::2, ::2]
    expected = equations.scale(view, equations.excitation(attention, view))
    torch.testing.assert_close(attention(view), expected, rtol=1e-12, atol=1e-12)
