"""A single image's scales are multiplied into the weights where the output is much larger."""

import pytest
import torch
from torch import nn

from composer_attn import fold_norms
from composer_attn.folding.beforehand import output_means, windows_of
from composer_attn.folding.folded_site import FoldedSite
from composer_attn.ops.backends import excited_cpp
from tests.folding.networks import at_random
from tests.folding.test_numbers import each_attention

BUILD = {
    "signal": (nn.Conv1d, nn.BatchNorm1d, (900,)),
    "image": (nn.Conv2d, nn.BatchNorm2d, (30, 31)),
    "volume": (nn.Conv3d, nn.BatchNorm3d, (9, 10, 11)),
}
# Every convolution that is padded by zeros, if at all.
CONVOLUTIONS = [
    {},
    {"stride": 2},
    {"bias": False},
    {"padding": "same"},
    {"padding": 2},
    {"padding": "valid", "dilation": 2},
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": 4, "stride": 2, "dilation": 3, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
    {"kernel_size": 1, "groups": 2},
]


@pytest.fixture
def counted(monkeypatch):
    """Count the images whose scales go into the weights."""
    seen = []
    inner = FoldedSite._scaled_beforehand

    def scaled(self, *given):
        seen.append(given)
        return inner(self, *given)

    monkeypatch.setattr(FoldedSite, "_scaled_beforehand", scaled)
    return seen


def network(kind: str, **options) -> tuple[nn.Module, torch.Tensor]:
    conv, norm, size = BUILD[kind]
    layers = nn.Sequential(conv(4, 32, **{"kernel_size": 1, **options}), norm(32), nn.ReLU())
    return at_random(layers), torch.randn(1, 4, *size, dtype=torch.float64)


def in_layout(value, last: bool):
    """Convert a network or images to channels last, if that exists in as many dimensions."""
    return value.to(memory_format=torch.channels_last) if last else value


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@torch.no_grad()
def test_averages_of_the_output_follow_from_the_input(kind, options):
    model, x = network(kind, **options)
    conv = model[0]
    for last in (False, True) if kind == "image" else (False,):
        for weights_last in {False, last}:
            conv, x = in_layout(conv, weights_last), in_layout(x, last)
            expected = conv(x).flatten(2).mean(2)
            found = output_means(conv, x, windows_of(conv, x))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_of_windows_of_any_form():
    conv = nn.Conv2d(3, 8, (5, 2), stride=(1, 3), padding=(4, 0), dilation=(2, 1)).double()
    for size in ((1, 2), (3, 7), (12, 5)):
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        windows = windows_of(conv, x)
        y = conv(x)
        assert tuple(each.number for each in windows) == y.shape[2:]
        expected = y.mean((2, 3))
        torch.testing.assert_close(output_means(conv, x, windows), expected, rtol=1e-12, atol=1e-12)
    assert windows_of(conv, torch.empty(1, 3, 0, 1))[1].number == 0


@each_attention
@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@torch.no_grad()
def test_it_computes_the_same(kind, options, applying, counted):
    model, x = network(kind, **options)
    applying(model)
    expected = model(x)
    fold_norms(model, backend="reference")
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    pays = x.numel() + 3 * model[0].weight.numel() < expected.numel()
    assert pays or kind == "volume"
    assert len(counted) == pays


@each_attention
@pytest.mark.parametrize(
    "options",
    [{"padding": 1, "padding_mode": "circular"}, {"kernel_size": 9}, {"stride": 8}],
    ids=str,
)
@torch.no_grad()
def test_where_it_does_not_apply_or_pay_the_output_is_scaled(options, applying, counted):
    model, x = network("image", **options)
    applying(model)
    expected = model(x)
    fold_norms(model, backend="reference")
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not counted


@each_attention
@pytest.mark.parametrize("squeeze", ["max", "std", "none"])
@torch.no_grad()
def test_other_squeezes_need_the_output(squeeze, applying, counted):
    model, x = network("image")
    applying(model, squeeze=squeeze)
    expected = model(x)
    fold_norms(model, backend="reference")
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not counted


@each_attention
def test_batches_gradients_and_traces_go_the_long_way(applying, counted):
    model, x = network("image", kernel_size=3, padding=1)
    applying(model)
    expected = model(x)
    fold_norms(model, backend="reference")
    torch.testing.assert_close(model(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x.expand(3, -1, -1, -1)), expected.expand(3, -1, -1, -1))
        traced = torch.jit.trace(model, x, check_trace=False)  # the check runs it
        program = torch.export.export(model, (x,)).module()
        assert not counted
        for count in (1, 3):
            images = torch.randn(count, *x.shape[1:], dtype=torch.float64)
            wanted = model(images)
            torch.testing.assert_close(traced(images), wanted)
        torch.testing.assert_close(program(x), expected)
    assert len(counted) == 1  # the single image of the network itself


@each_attention
@torch.no_grad()
def test_under_autocast_the_output_is_scaled(applying, counted):
    model, x = network("image")
    applying(model)
    fold_norms(model.float(), backend="reference")
    expected = model(x.float())
    assert len(counted) == 1
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x.float())
    assert len(counted) == 1
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


@each_attention
def test_a_network_run_in_inference_mode_runs_without_it_afterwards(applying, counted):
    model, x = network("image", kernel_size=3)
    applying(model)
    expected = model(x).detach()
    fold_norms(model, backend="reference")
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    assert len(counted) == 2


@each_attention
@torch.no_grad()
def test_where_a_backend_attends_the_output_only_large_ones_are_worth_it(applying, counted):
    model = at_random(nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)))
    applying(model)
    large = torch.randn(1, 3, 256, 257, dtype=torch.float64)
    expected = [model(x) for x in (large, large[..., :64])]
    fold_norms(model, backend="cpp")
    torch.testing.assert_close(model(large), expected[0], rtol=1e-10, atol=1e-10)
    assert len(counted) == 1
    torch.testing.assert_close(model(large[..., :64]), expected[1], rtol=1e-10, atol=1e-10)
    assert len(counted) == 1


@each_attention
@pytest.mark.parametrize(
    ("options", "is_one_call"),
    [({}, True), ({"bias": False}, True), ({"stride": 2}, False), ({"padding": 1}, False),
     ({"groups": 2}, False), ({"kernel_size": 3}, False)],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_a_backend_gives_the_weights_of_convolutions_of_size_1(
    options, is_one_call, applying, counted, monkeypatch
):
    seen = []
    weights = excited_cpp.PreparedCall.weights
    monkeypatch.setattr(
        excited_cpp.PreparedCall, "weights", lambda *given: seen.append(0) or weights(*given)
    )
    model, _ = network("image", **options)
    applying(model)
    x = torch.randn(1, 4, 70, 71, dtype=torch.float64)
    wanted = [model(each) for each in (x, x[..., :20])]
    fold_norms(model, backend="cpp")
    for last in (False, True):
        for each, expected in zip((x, x[..., :20]), wanted, strict=True):
            found = model(in_layout(each.contiguous(), last))
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert len(seen) == 2 * is_one_call  # the large image in both layouts
    assert not counted
    unseen = model[0].attention.last_layer.register_forward_hook(lambda m, i, o: o)
    torch.testing.assert_close(model(x), wanted[0], rtol=1e-10, atol=1e-10)
    assert len(seen) == 2 * is_one_call
    unseen.remove()
