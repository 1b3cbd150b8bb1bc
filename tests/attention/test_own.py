"""A subclass of ChannelAttention, and what it inherits."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_attn.attention import ChannelAttention, SqueezeExcitation
from composer_attn.attention.signatures import own_parameters
from composer_attn.errors import ArgumentError
from composer_attn.ops import attend, attend_then_normalize, normalize_then_attend
from tests.attention.attentions import each_gate, each_spatial, each_start, randomize


class Affine(ChannelAttention):
    """One linear layer: effective SE."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.fc = nn.Linear(channels, channels)

    def logits(self, squeezed):
        return self.fc(squeezed.to(self.fc.weight.dtype))


class Softplus(Affine):
    """A custom gate with a lower bound only."""

    def apply_gate(self, logits):
        return F.softplus(logits)


class Style(ChannelAttention):
    """Averages and standard deviations beside each other, as style-based recalibration has it."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.fc = nn.Linear(2 * channels, channels)

    def apply_squeeze(self, x):
        space = tuple(range(2, x.dim()))
        return torch.cat([super().apply_squeeze(x), x.std(space)], 1)

    def logits(self, squeezed):
        return self.fc(squeezed.to(self.fc.weight.dtype))


def values(module, x):
    """Write the logits of the three out, layer by layer."""
    flat = x.flatten(2)
    squeezed = flat.mean(2)
    if isinstance(module, Style):
        squeezed = torch.cat([squeezed, flat.std(2)], 1)
    return squeezed @ module.fc.weight.T + module.fc.bias


each_own = pytest.mark.parametrize("kind", [Affine, Softplus, Style])


@each_own
@each_spatial
def test_the_output_is_the_formula_written_out(kind, spatial):
    module = randomize(kind(6).double())
    x = 1 + torch.randn(3, 6, *spatial, dtype=torch.float64)
    logits = values(module, x)
    scales = (1 + logits.exp()).log() if kind is Softplus else 1 / (1 + (-logits).exp())
    torch.testing.assert_close(module.excitation(x), scales, rtol=1e-12, atol=1e-12)
    expected = (x.flatten(2) * scales[..., None]).view_as(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(module, (x.requires_grad_(),))


@each_own
@each_gate
@each_spatial
def test_identity_start_is_exact_and_learns(kind, gate, spatial):
    module, x = kind(6, gate=gate, start="identity"), torch.randn(3, 6, *spatial)
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.fc.weight.grad.abs().max() > 0
    module.reset_parameters()
    assert torch.equal(module(x), x)


def test_a_custom_gate_is_shifted_so_that_0_gives_1():
    module, x = Softplus(6, start="identity").double(), torch.randn(3, 6, 4, dtype=torch.float64)
    randomize(module)
    shifted = 1 + F.softplus(values(module, x)) - torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(module.excitation(x), shifted, rtol=1e-12, atol=1e-12)


class Built(Affine):
    """Derives from one that has a layer already, and adds the one that counts."""

    def __init__(self, channels, **options):
        super().__init__(channels, **options)
        self.second = nn.Linear(channels, channels)

    def logits(self, squeezed):
        return self.second(super().logits(squeezed).relu())


class Inherits(Built):
    """Does not override the constructor."""


@pytest.mark.parametrize("kind", [Built, Inherits])
def test_the_last_layer_of_the_last_class_is_the_one_that_is_zeroed(kind):
    module = kind(6, start="identity")
    assert module.last_layer is module.second
    assert not module.second.weight.any()
    assert module.fc.weight.any()


def test_identity_start_without_a_layer_is_refused():
    class Bare(ChannelAttention):
        def logits(self, squeezed):
            return squeezed

    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(Bare(6)(x), x * x.mean(2, keepdim=True).sigmoid())
    with pytest.raises(ArgumentError, match="Bare has no layer to zero for start='identity'"):
        Bare(6, start="identity")


def test_missing_logits_are_an_error_that_says_so():
    class Nothing(ChannelAttention):
        pass

    with pytest.raises(NotImplementedError, match="Nothing must compute its logits"):
        Nothing(6)(torch.randn(2, 6, 3))


@each_own
def test_the_range_of_the_gate_is_known(kind):
    assert Affine(6, gate="tanh").gate_range == (-1, 1)
    assert Softplus(6).gate_range == (0, float("inf"))
    low, high = Softplus(6, start="identity").gate_range
    assert low == pytest.approx(1 - torch.tensor(2.0).log())
    assert high == float("inf")


def test_a_custom_squeeze_may_build_on_a_given_one():
    x = torch.randn(2, 6, 5)
    module = Style(6, squeeze="max")
    joined = torch.cat([x.amax(2), x.std(2)], 1)
    torch.testing.assert_close(module.excitation(x), module.fc(joined).sigmoid())
    for squeeze in ("avg+max", "none"):
        with pytest.raises(ArgumentError, match="Style overrides apply_squeeze, which can"):
            Style(6, squeeze=squeeze)


@each_start
@pytest.mark.parametrize("kind", [Affine, Softplus])
@pytest.mark.parametrize("training", [True, False])
def test_what_squeezes_to_averages_is_computed_jointly_with_a_norm(kind, start, training):
    module = randomize(kind(6, start=start).double())
    norm = nn.BatchNorm2d(6).double().train(training)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    dy = torch.randn_like(x)
    for joint, apart in (
        (attend_then_normalize, lambda x, a, n: n(a(x))),
        (normalize_then_attend, lambda x, a, n: a(n(x))),
    ):
        results = []
        for function in (joint, apart):
            own = copy.deepcopy(norm)
            y = function(x, module, own)
            results.append((y, *torch.autograd.grad(y, (x, *module.parameters()), dy)))
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attend(x, module), module(x), rtol=1e-12, atol=1e-12)


@each_own
def test_copies_and_pickles_compute_the_same(kind):
    module, x = randomize(kind(6)), torch.randn(2, 6, 3)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), module(x))


def test_arguments_are_known_through_options_that_are_handed_on():
    assert list(own_parameters(Affine)) == ["gate", "start", "squeeze"]
    assert list(own_parameters(Inherits)) == ["gate", "start", "squeeze"]
    assert set(own_parameters(SqueezeExcitation)) == {
        "latent_channels", "bias", "gate", "start", "squeeze"
    }  # fmt: skip
    assert own_parameters(lambda channels, **anything: None) is None
    assert list(own_parameters(lambda dim, size, *, device=None: None)) == ["size"]
