"""Attention of a map in place, in one call of C++, against the same in operations of torch."""

import pytest
import torch
import torch.nn.functional as F

from composer_attn.attention.gates import GATES
from composer_attn.ops.backends import excited_cpp
from tests.ops.test_cpp import SHAPES

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5}


def numbers(channels, hidden, dtype, biases=True, factors=True):
    """Return two layers of random weights, and factors and a shift of each channel."""

    def of(*shape):
        return torch.randn(*shape, dtype=dtype)

    w1, w2 = of(hidden, channels), of(channels, hidden)
    layers = (w1, of(hidden), w2, of(channels)) if biases else (w1, None, w2, None)
    given = (of(channels), of(channels)) if factors else (None, None)
    return layers, *given, of(channels)


def logits(layers, means):
    if len(layers) == 1:
        (kernel,) = layers
        return F.conv1d(means.unsqueeze(1), kernel, padding=kernel.numel() // 2).squeeze(1)
    w1, b1, w2, b2 = layers
    return F.linear(F.linear(means, w1, b1).relu(), w2, b2)


def expected(x, layers, gate, start, inverse, post, shift):
    means = x.flatten(2).mean(2) * (1 if inverse is None else inverse)
    s = GATES[start][gate](logits(layers, means)) * (1 if post is None else post)
    ones = [1] * (x.dim() - 2)
    return x * s.reshape(*s.shape, *ones) + shift.reshape(-1, *ones)


def check(x, layers, gate, start, *given):
    call = excited_cpp.prepare(x.dtype, layers, gate, start == "identity", *given)
    wanted = expected(x, layers, gate, start, *given)
    found = x.clone(memory_format=torch.preserve_format)
    assert call.attend(found)
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error <= ALLOWED[x.dtype]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 12, 5), (1, 20, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ALLOWED)
def test_it_agrees_with_torch_in_every_shape(shape, last, dtype):
    x = torch.randn(shape, dtype=dtype)
    if last and x.dim() > 3:
        x = x.contiguous(memory_format=LAST[x.dim()])
    channels = shape[1]
    for hidden, biases, factors in ((3, True, True), (64, False, False)):
        layers, *given = numbers(channels, hidden, dtype, biases, factors)
        check(x, layers, "sigmoid", "paper", *given)
    for size in (1, 3, 9):
        check(x, (torch.randn(1, 1, size, dtype=dtype),), "sigmoid", "paper", *given)


@pytest.mark.parametrize("start", GATES)
@pytest.mark.parametrize("gate", GATES["paper"])
def test_every_gate(gate, start):
    assert (start, gate) in excited_cpp.GATES
    x = torch.randn(3, 37, 4, 5, dtype=torch.float64)
    layers, *given = numbers(37, 8, torch.float64)
    check(x, layers, gate, start, *given)


def test_large_maps_give_the_same_with_any_number_of_threads():
    x = torch.randn(1, 128, 40, 41).contiguous(memory_format=torch.channels_last)
    layers, *given = numbers(128, 1024, torch.float32)
    call = excited_cpp.prepare(x.dtype, layers, "sigmoid", False, *given)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(x.clone(memory_format=torch.preserve_format))
            assert call.attend(found[-1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nan_stays():
    x = torch.randn(2, 8, 3, 3)
    x[0, 3, 1, 1] = torch.nan
    layers, *given = numbers(8, 4, torch.float32)
    for gate in GATES["paper"]:
        y = x.clone()
        assert excited_cpp.prepare(x.dtype, layers, gate, False, *given).attend(y)
        assert y[0].isnan().all()
        assert y[1].isfinite().all()


def test_unsupported_maps_are_unchanged():
    x = torch.randn(2, 8, 6, 6)
    layers, *given = numbers(8, 4, torch.float32)
    call = excited_cpp.prepare(x.dtype, layers, "sigmoid", False, *given)
    for other in (x.double(), x[:, :4], x[..., ::2], x.transpose(2, 3)):
        before = other.clone()
        assert not call.attend(other)
        assert torch.equal(other, before)
    assert call.attend(torch.empty(0, 8, 6, 6))
    w1, b1, w2, b2 = layers
    for wrong in ((w1.double(), b1, w2, b2), (w1, b1, w2.t(), b2), (w1[:, :4], b1, w2, b2)):
        assert excited_cpp.prepare(x.dtype, wrong, "sigmoid", False, *given) is None
    cut = (given[0][:4], *given[1:])
    assert excited_cpp.prepare(x.dtype, layers, "sigmoid", False, *cut) is None


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
def test_weights_of_a_convolution_of_size_1_give_its_attended_output(bias, last, dtype):
    for width, channels, size in ((3, 5, (2, 3)), (64, 130, (9, 8)), (17, 33, (4, 3, 5))):
        dimensions = len(size)
        x = torch.randn(1, width, *size, dtype=dtype)
        x = x.contiguous(memory_format=LAST[x.dim()]) if last else x
        conv = getattr(torch.nn, f"Conv{dimensions}d")(width, channels, 1, bias=bias).to(dtype)
        conv = conv.requires_grad_(False)
        for layers, *given in (
            numbers(channels, 8, dtype),
            ((torch.randn(1, 1, 3, dtype=dtype),), None, None, torch.randn(channels, dtype=dtype)),
        ):
            call = excited_cpp.prepare(dtype, layers, "sigmoid", False, *given)
            made = call.weights(x, conv.weight, conv.bias)
            wanted = expected(conv(x), layers, "sigmoid", "paper", *given)
            found = conv._conv_forward(x, *made)
            assert (found - wanted).abs().max() <= ALLOWED[dtype] * wanted.abs().max()
            assert call.weights(x[..., ::2], conv.weight, conv.bias) is None
            assert call.weights(x, conv.weight.half(), conv.bias) is None
            assert call.weights(x[:, 1:].contiguous(), conv.weight, conv.bias) is None
            assert call.weights(x, conv.weight.to("meta"), conv.bias) is None
            assert (
                call.weights(x, conv.weight, torch.zeros(2 * len(conv.weight), dtype=dtype)[::2])
                is None
            )
