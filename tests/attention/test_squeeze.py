"""The squeezes of the SENet paper's ablation, against formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.errors import ArgumentError

SHAPES = {"1d": (3, 10, 7), "2d": (3, 10, 5, 4), "3d": (2, 10, 3, 2, 4)}
BUILDERS = {
    "squeeze_excite": lambda **options: SqueezeExcitation(10, 4, **options),
    "eca": lambda **options: EfficientChannelAttention(10, 5, **options),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_attention = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
each_squeeze = pytest.mark.parametrize("squeeze", ["avg", "max", "avg+max", "std", "none"])


def by_formula(attention, vectors):
    """Compute the excitation of vectors (M, C), one at a time."""
    rows = []
    for vector in vectors:
        if isinstance(attention, SqueezeExcitation):
            hidden = torch.relu(attention.fc1.weight @ vector)
            rows.append(torch.sigmoid(attention.fc2.weight @ hidden))
        else:
            padded = F.pad(vector, (2, 2))
            kernel = attention.conv.weight.flatten()
            sums = [kernel @ padded[c : c + 5] for c in range(len(vector))]
            rows.append(torch.sigmoid(torch.stack(sums)))
    return torch.stack(rows)


@each_attention
@each_shape
def test_max_squeezes_each_channel_to_its_maximum(build, shape):
    attention = build(squeeze="max", dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    maxima = x.flatten(2).max(dim=2).values
    scales = by_formula(attention, maxima)
    torch.testing.assert_close(attention.excitation(x), scales, rtol=0, atol=1e-14)
    expected = (x.flatten(2) * scales[..., None]).reshape(shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-14)


@each_attention
@each_shape
def test_std_squeezes_each_channel_to_its_standard_deviation(build, shape):
    attention = build(squeeze="std", dtype=torch.float64)
    x = 3 + torch.randn(shape, dtype=torch.float64)
    values = x.flatten(2)
    means = values.sum(2, keepdim=True) / values.shape[2]
    deviations = ((values - means) ** 2).sum(2).div(values.shape[2]).sqrt()
    scales = by_formula(attention, deviations)
    torch.testing.assert_close(attention.excitation(x), scales, rtol=0, atol=1e-14)
    expected = (values * scales[..., None]).reshape(shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-14)


@each_attention
def test_std_of_one_position_or_of_equal_ones_is_0_and_has_no_nan_in_its_gradient(build):
    attention = build(squeeze="std", dtype=torch.float64)
    x = torch.randn(3, 10, 2, 1, dtype=torch.float64)
    x[:, 4:] = 1.5
    x.requires_grad_()
    attention(x).sum().backward()
    assert x.grad.isfinite().all()
    nothing = torch.zeros(3, 10, dtype=torch.float64)
    one = torch.randn(3, 10, 1, dtype=torch.float64)
    torch.testing.assert_close(attention.excitation(one), by_formula(attention, nothing))


@each_shape
@pytest.mark.parametrize("bias", [False, True])
def test_avg_and_max_is_the_channel_gate_of_cbam(shape, bias):
    attention = SqueezeExcitation(10, 4, squeeze="avg+max", bias=bias, dtype=torch.float64)
    x = 1 + torch.randn(shape, dtype=torch.float64)

    def bottleneck(vector):
        layers = (attention.fc1, attention.fc2)
        first, second = (lambda v, p=p: F.linear(v, p.weight, p.bias) for p in layers)
        return second(first(vector).relu())

    values = x.flatten(2)
    logits = bottleneck(values.mean(2)) + bottleneck(values.max(2).values)
    scales = 1 / (1 + torch.exp(-logits))
    torch.testing.assert_close(attention.excitation(x), scales, rtol=0, atol=1e-14)
    expected = (values * scales[..., None]).reshape(shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-14)


def test_avg_and_max_of_eca_adds_the_logits_of_both():
    attention = EfficientChannelAttention(10, 5, squeeze="avg+max", dtype=torch.float64)
    x = torch.randn(3, 10, 5, 4, dtype=torch.float64)
    kernel = attention.conv.weight.flatten()
    expected = torch.zeros(3, 10, dtype=torch.float64)
    for vectors in (x.mean((2, 3)), x.amax((2, 3))):
        padded = F.pad(vectors, (2, 2))
        for c in range(10):
            expected[:, c] += padded[:, c : c + 5] @ kernel
    torch.testing.assert_close(attention.excitation(x), expected.sigmoid(), rtol=0, atol=1e-14)


@each_attention
@each_shape
def test_none_excites_each_position_by_its_own_channels(build, shape):
    attention = build(squeeze="none", dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.empty_like(x).flatten(2)
    for n, sample in enumerate(x.flatten(2)):
        expected[n] = sample * by_formula(attention, sample.T).T
    torch.testing.assert_close(attention(x), expected.reshape(shape), rtol=0, atol=1e-14)


def test_none_is_the_papers_two_convolutions_of_one_pixel():
    attention = SqueezeExcitation(10, 4, squeeze="none", bias=True, dtype=torch.float64)
    x = torch.randn(2, 10, 6, 5, dtype=torch.float64)
    hidden = F.conv2d(x, attention.fc1.weight[..., None, None], attention.fc1.bias).relu()
    logits = F.conv2d(hidden, attention.fc2.weight[..., None, None], attention.fc2.bias)
    torch.testing.assert_close(attention(x), x * logits.sigmoid(), rtol=0, atol=1e-14)


@each_attention
@each_squeeze
def test_gradients_memory_format_and_half_precision(build, squeeze):
    attention = build(squeeze=squeeze, dtype=torch.float64)
    x = torch.randn(2, 10, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))
    last = x.detach().contiguous(memory_format=torch.channels_last)
    assert attention(last).is_contiguous(memory_format=torch.channels_last)
    half = attention.float()(x.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    exact = attention.double()(x.detach())
    torch.testing.assert_close(half.double(), exact, rtol=0.02, atol=0.02)


@each_attention
@pytest.mark.parametrize("squeeze", ["max", "none", "avg+max", "std"])
def test_traces_and_exports(build, squeeze):
    attention = build(squeeze=squeeze)
    x = torch.randn(2, 10, 4, 3)
    expected = attention(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(attention)(x), expected)
    torch.testing.assert_close(torch.export.export(attention, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(attention, x)(x), expected)


@each_attention
@pytest.mark.parametrize("squeeze", ["mean", None, 1, ["avg"]])
def test_other_squeezes_are_refused_with_the_list(build, squeeze):
    valid = r"avg, max, avg\+max, std, none"
    with pytest.raises(ArgumentError, match=f"squeeze must be one of {valid}; got"):
        build(squeeze=squeeze)


@each_attention
@each_squeeze
def test_wrong_shapes_are_refused_whatever_the_squeeze(build, squeeze):
    with pytest.raises(ValueError, match="takes inputs of shape"):
        build(squeeze=squeeze)(torch.randn(2, 9, 4, 4))
