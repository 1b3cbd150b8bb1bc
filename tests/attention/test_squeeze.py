"""The squeezes of the SENet paper's ablation, against formulas written out by hand."""

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


def by_hand(attention, vectors):
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
    scales = by_hand(attention, maxima)
    torch.testing.assert_close(attention.excitation(x), scales, rtol=0, atol=1e-14)
    expected = (x.flatten(2) * scales[..., None]).reshape(shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-14)


@each_attention
@each_shape
def test_none_excites_each_position_by_its_own_channels(build, shape):
    attention = build(squeeze="none", dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    expected = torch.empty_like(x).flatten(2)
    for n, sample in enumerate(x.flatten(2)):
        expected[n] = sample * by_hand(attention, sample.T).T
    torch.testing.assert_close(attention(x), expected.reshape(shape), rtol=0, atol=1e-14)


def test_none_is_the_papers_two_convolutions_of_one_pixel():
    attention = SqueezeExcitation(10, 4, squeeze="none", bias=True, dtype=torch.float64)
    x = torch.randn(2, 10, 6, 5, dtype=torch.float64)
    hidden = F.conv2d(x, attention.fc1.weight[..., None, None], attention.fc1.bias).relu()
    logits = F.conv2d(hidden, attention.fc2.weight[..., None, None], attention.fc2.bias)
    torch.testing.assert_close(attention(x), x * logits.sigmoid(), rtol=0, atol=1e-14)


@each_attention
@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
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
@pytest.mark.parametrize("squeeze", ["max", "none"])
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
    with pytest.raises(ArgumentError, match="squeeze must be one of avg, max, none; got"):
        build(squeeze=squeeze)


@each_attention
@pytest.mark.parametrize("squeeze", ["avg", "max", "none"])
def test_wrong_shapes_are_refused_whatever_the_squeeze(build, squeeze):
    with pytest.raises(ValueError, match="takes inputs of shape"):
        build(squeeze=squeeze)(torch.randn(2, 9, 4, 4))
