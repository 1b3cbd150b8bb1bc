"""A single image's scales are put into the weights of a wide 1x1 convolution."""

import pytest
import torch
from torch import nn

from composer_attn import fold_norms
from composer_attn.folding.folded_site import FoldedSite
from tests.folding.networks import at_random
from tests.folding.test_numbers import each_attention

BUILD = {
    "signal": (nn.Conv1d, nn.BatchNorm1d, (900,)),
    "image": (nn.Conv2d, nn.BatchNorm2d, (30, 31)),
    "volume": (nn.Conv3d, nn.BatchNorm3d, (9, 10, 11)),
}


@pytest.fixture
def counted(monkeypatch):
    """Count the images that go the short way."""
    seen = []
    inner = FoldedSite._scaled_beforehand
    monkeypatch.setattr(
        FoldedSite, "_scaled_beforehand", lambda self, x: seen.append(x) or inner(self, x)
    )
    return seen


def network(kind: str, **options) -> tuple[nn.Module, torch.Tensor]:
    conv, norm, size = BUILD[kind]
    layers = nn.Sequential(conv(4, 32, **{"kernel_size": 1, **options}), norm(32), nn.ReLU())
    return at_random(layers), torch.randn(1, 4, *size, dtype=torch.float64)


@each_attention
@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"bias": False}, {"padding": "same"}, {"padding": "valid", "dilation": 2}],
    ids=str,
)
@torch.no_grad()
def test_it_computes_the_same(kind, options, applying, counted):
    model, x = network(kind, **options)
    applying(model)
    expected = model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert len(counted) == 1


@each_attention
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"groups": 2}, {"kernel_size": 3}, {"stride": 8}],
    ids=str,
)
@torch.no_grad()
def test_where_it_does_not_hold_or_pay_the_output_is_scaled(options, applying, counted):
    model, x = network("image", **options)
    applying(model)
    expected = model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not counted


@each_attention
@pytest.mark.parametrize("squeeze", ["max", "std", "none"])
@torch.no_grad()
def test_other_squeezes_need_the_output(squeeze, applying, counted):
    model, x = network("image")
    applying(model, squeeze=squeeze)
    expected = model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not counted


@each_attention
def test_batches_gradients_and_traces_go_the_long_way(applying, counted):
    model, x = network("image")
    applying(model)
    expected = model(x)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x.expand(3, -1, -1, -1)), expected.expand(3, -1, -1, -1))
        traced = torch.jit.trace(model, x, check_trace=False)  # the check runs it
        program = torch.export.export(model, (x,)).module()
        assert not counted
        torch.testing.assert_close(traced(x), expected)
        torch.testing.assert_close(program(x), expected)
    assert not counted
