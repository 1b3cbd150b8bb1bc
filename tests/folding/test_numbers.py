"""A folded network computes what it did, to rounding, whichever way it was attended."""

import pytest
import torch
from torch import Tensor, nn

from composer_attn import (
    ChannelAttention,
    apply_attention,
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    fold_norms,
    plan_folding,
    register_attention,
)
from composer_attn.attention.base import SQUEEZES
from composer_attn.attention.gates import GATES
from tests.folding.networks import BLOCKS, CHANNELS, NETWORKS, at_random, make

APPLYING = {
    "eca": lambda model, **options: apply_eca(model, min_channels=8, **options),
    "squeeze_excite": lambda model, **options: apply_squeeze_excite(
        model, 4, min_channels=8, **{"bias": True, **options}
    ),
}
each_attention = pytest.mark.parametrize("applying", APPLYING.values(), ids=APPLYING)
each_network = pytest.mark.parametrize("name", NETWORKS)


def assert_folded_to_the_same(model: nn.Module, x: Tensor, norms_left: int = 0) -> None:
    """Fold, and compare in double precision."""
    with torch.no_grad():
        before = model(x)
        pairs = len(plan_folding(model).folded)
        assert pairs
        fold_norms(model)
        after = model(x)
    assert before.isfinite().all()
    assert (after - before).abs().max() <= 1e-10 * max(1, before.abs().max())
    kinds = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(kinds) == norms_left


@each_network
def test_plain_pairs(name):
    assert_folded_to_the_same(*make(name))


@each_network
@each_attention
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_attended(name, applying, placement):
    model, x = make(name)
    applying(model, placement=placement)
    assert attended_modules(model)
    assert_folded_to_the_same(model, x)


@each_attention
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
def test_in_residual_blocks(name, applying, placement):
    model, x = make(name)
    applying(model, placement=placement)
    assert_folded_to_the_same(model, x)


@each_attention
def test_convolution_and_norm_both_attended(applying):
    model, x = make("bias")
    applying(model, placement="norm")
    applying(model)
    assert_folded_to_the_same(model, x)


@each_attention
@pytest.mark.parametrize("squeeze", SQUEEZES)
@pytest.mark.parametrize("name", ["signal", "bias", "volume"])
def test_squeezes(name, applying, squeeze):
    model, x = make(name)
    applying(model, squeeze=squeeze)
    assert_folded_to_the_same(model, x)


@each_attention
@pytest.mark.parametrize("start", GATES)
@pytest.mark.parametrize("gate", GATES["paper"])
def test_gates(gate, start, applying):
    model, x = make("inverted")
    applying(model, gate=gate, start=start)
    for attention in attended_modules(model).values():
        nn.init.normal_(attention.last_layer.weight)
    assert_folded_to_the_same(model, x)


@each_attention
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
def test_transposed_convolutions(applying, dimensions, groups, bias):
    conv = getattr(nn, f"ConvTranspose{dimensions}d")
    norm = getattr(nn, f"BatchNorm{dimensions}d")
    model = nn.Sequential(
        conv(4, CHANNELS, 3, stride=2, groups=groups, bias=bias), norm(CHANNELS), nn.ReLU()
    )
    model = at_random(model)
    x = torch.randn(2, 4, *[5] * dimensions, dtype=torch.float64)
    assert_folded_to_the_same(model, x)


def test_other_numbers_of_channels_than_the_networks_of_the_tables_have():
    model = at_random(nn.Sequential(nn.Conv2d(3, 257, 3), nn.BatchNorm2d(257, eps=0.1)))
    apply_eca(model, min_channels=8, kernel_size=9)
    assert_folded_to_the_same(model, torch.randn(1, 3, 5, 5, dtype=torch.float64))


class Shifted(ChannelAttention):
    """A user-defined attention, with custom layers and a custom gate."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.layer = nn.Linear(channels, channels)

    def logits(self, squeezed):
        return self.layer(squeezed + 1)

    def apply_gate(self, logits):
        return 1 + logits.sin()


def test_a_custom_attention():
    register_attention("shifted", Shifted)
    model, x = make("bias")
    apply_attention(model, "shifted", min_channels=8)
    model.double()
    assert_folded_to_the_same(model, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each_attention
def test_other_precisions(applying, dtype):
    model, x = make("inverted")
    applying(model)
    with torch.no_grad():
        expected = model(x)
        model.to(dtype)
        rough = (model(x.to(dtype)) - expected).abs().max()
        fold_norms(model)
        found = model(x.to(dtype))
    assert found.dtype == dtype
    # As near to the true numbers as the network was, or nearly.
    assert (found - expected).abs().max() <= 3 * rough


@each_attention
def test_channels_last_stay_channels_last(applying):
    model, x = make("resnet")
    applying(model)
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    fold_norms(model)
    y = model.bn1(model.conv1(x))
    assert y.is_contiguous(memory_format=torch.channels_last)


@each_attention
def test_one_sample_without_a_batch(applying):
    model = at_random(nn.Sequential(nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS)))
    applying(model)
    x = torch.randn(3, 6, 6, dtype=torch.float64)
    expected = model(x.unsqueeze(0)).squeeze(0)
    fold_norms(model)
    torch.testing.assert_close(model(x), expected)


@each_attention
def test_gradients_reach_the_input(applying):
    model, x = make("inverted")
    applying(model)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    fold_norms(model)
    (found,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
