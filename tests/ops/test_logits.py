"""Manual gradients of the layers of an attention, against autograd."""

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import attend_then_normalize
from composer_attn.ops.backends import cpp
from composer_attn.ops.backends import reference as passes
from tests.ops.regions import SMALL, build, differences

BACKENDS = {"reference": passes, "cpp": cpp}
each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
# A kernel wider than the channels; fewer and more channels than a vector holds.
LAYERS = {
    **{
        f"eca{size}_{channels}": (EfficientChannelAttention, channels, {"kernel_size": size})
        for size, channels in [(1, 1), (1, 5), (3, 2), (5, 16), (7, 37), (9, 3), (3, 130)]
    },
    "se": (SqueezeExcitation, 37, {"latent_channels": 5}),
    "se_bias": (SqueezeExcitation, 16, {"latent_channels": 1, "bias": True}),
}


@each_backend
@pytest.mark.parametrize(("kind", "channels", "options"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("samples", [1, 4])
def test_layers_and_their_manual_gradients_equal_autograd(
    backend, kind, channels, options, samples
):
    attention = kind(channels, dtype=torch.float64, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    means = torch.randn(samples, channels, dtype=torch.float64, requires_grad=True)
    d_logits = torch.randn(samples, channels, dtype=torch.float64)
    layers, parameters = attention.by_hand(torch.float64)
    with torch.no_grad():
        logits, hidden = layers.forward(backend, means, parameters)
        d_means, found = layers.backward(backend, d_logits, means, hidden, parameters)
    expected = attention.logits(means)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    wanted = [p for p in parameters if p is not None]
    gradients = torch.autograd.grad(expected, [means, *wanted], d_logits)
    found = [d_means, *(d for d in found if d is not None)]
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Shifted(SqueezeExcitation):
    """Computes other logits."""

    def logits(self, means):
        return super().logits(means) + means.tanh()


class Softened(EfficientChannelAttention):
    """Computes its scales from the logits in another way."""

    def excitation_of(self, means):
        return super().excitation_of(means).sqrt()


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Tempered(SqueezeExcitation):
    """Gates other numbers than the logits."""

    def gated(self, logits):
        return super().gated(logits / 3)


def with_own_gate(channels, **options):
    attention = EfficientChannelAttention(channels, 3, **options)
    attention._gate = torch.exp
    return attention


def with_own_layer(channels, **options):
    attention = SqueezeExcitation(channels, 3, **options)
    attention.fc1 = OwnLinear(channels, 3, dtype=torch.float64)
    return attention


OWN = [Shifted, Softened, Tempered, with_own_gate, with_own_layer]


@pytest.mark.parametrize("kind", OWN)
def test_manual_gradients_are_used_for_nothing_else(kind):
    case = build(SMALL, relu=True)
    case.attention = kind(SMALL[1], dtype=torch.float64)
    assert case.attention.by_hand(torch.float64) is None
    assert max(differences(case, SMALL, "cpp").values()) < 1e-12
    y = case.joint(torch.randn(SMALL, dtype=torch.float64), None, "cpp")
    assert y.grad_fn.name() == "AffineBackward"


def test_parameters_of_another_dtype_than_the_statistics_are_left_to_autograd():
    attention = SqueezeExcitation(6, 3, dtype=torch.bfloat16)
    assert attention.by_hand(torch.float32) is None
    assert attention.by_hand(torch.bfloat16) is not None


@each_backend
@pytest.mark.parametrize("frozen", ["attention", "norm", "both"])
def test_frozen_parameters_get_no_gradient_and_others_the_same(backend, frozen):
    name = next(name for name, module in BACKENDS.items() if module is backend)
    case = build(SMALL, relu=True, shortcut=True)
    x = torch.randn(2, *SMALL, dtype=torch.float64)
    parts = [case.attention, case.norm] if frozen == "both" else [getattr(case, frozen)]
    for part in parts:
        part.requires_grad_(False)
    gradients = []
    for run in (case.plain, lambda a, b: case.joint(a, b, name)):
        for parameter in case.parameters():
            parameter.grad = None
        run(x[0].clone().requires_grad_(), x[1]).square().sum().backward()
        gradients.append([p.grad for p in case.parameters()])
    for parameter, ours, theirs in zip(case.parameters(), *gradients, strict=True):
        assert (ours is None) == (theirs is None) == (not parameter.requires_grad)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_who_looks_sees_the_excitation():
    case, seen = build(SMALL), []
    case.attention.observer = seen.append
    x = torch.randn(SMALL, dtype=torch.float64)
    attend_then_normalize(x, case.attention, case.norm, "cpp")
    (scales,) = seen
    assert not scales.requires_grad
    torch.testing.assert_close(scales, case.attention.excitation(x), rtol=1e-12, atol=1e-12)


def test_a_weight_changed_between_forward_and_backward_is_an_error():
    case = build(SMALL)
    y = case.joint(torch.randn(SMALL, dtype=torch.float64, requires_grad=True), None, "cpp")
    with torch.no_grad():
        case.attention.fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
