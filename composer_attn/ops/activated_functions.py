"""The arithmetic of norm, activation and attention, forward and backward.

With ``z = scale x + shift`` the norm's output, ``m = mean(phi(z))``, ``s = gate(logits(m))`` and
``y = s phi(z)``, the arithmetic between the passes needs only five sums over space::

    B1 = sum dy phi'    D1 = sum dy phi' (x - mean)    S = sum dy phi    P = sum phi'
    Q  = sum phi' (x - mean)

``S`` is the gradient of ``s``; backpropagated through gate and layers it gives that of ``m``, which
is ``k L``. Then ``B = s B1 + k P`` and ``D = s D1 + k Q`` are the sums that determine the norm's
gradient, and ``dx = scale (s dy + k) phi' + d_mean / L + 2 d_variance (x - mean) / L``. Without an
attention ``s`` is 1 and ``k`` is 0; without a norm ``z = x``.

Saved for backward are ``x`` and ``(N, C)`` tensors.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer_attn.ops.activations import IDENTITY, Activation
from composer_attn.ops.backends import activated_reference as plain_activated
from composer_attn.ops.backends import reference as plain
from composer_attn.ops.backends.interface import ActivatedPasses, Passes
from composer_attn.ops.backends.layout import empty_numbers
from composer_attn.ops.fused_functions import in_dtypes_of, needs_plain_passes
from composer_attn.ops.logits import cast_parameters
from composer_attn.ops.manual_gradients import Excitation, Norm
from composer_attn.ops.recorded import in_full_precision


@dataclass(frozen=True)
class Stages:
    """The parts of a fused region.

    Attributes:
        passes: the four passes for norm and attention.
        activated: the passes with an activation
            (:mod:`composer_attn.ops.backends.activated_reference`).
        activation: the activation.
        norm: the norm before the activation, if any.
        excitation: the attention after the activation, if any.
    """

    passes: Passes
    activated: ActivatedPasses
    activation: Activation
    norm: Norm | None
    excitation: Excitation | None

    def back(self, dy: Tensor) -> tuple[Passes, ActivatedPasses]:
        """Return the passes for the backward; those of plain torch for batched gradients."""
        if needs_plain_passes(dy):
            return plain, plain_activated
        return self.passes, self.activated

    @property
    def fixed(self) -> bool:
        """Whether the output is independent of the batch statistics."""
        return self.norm is None or self.norm.fixed


def excited(
    stages: Stages, x: Tensor, bias: Tensor | None, of_norm, parameters
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the scales ``(N, C)``, the averages that they are of, and what the layers keep."""
    if stages.excitation is None:
        return None, None, None
    m = _squeezed(stages, x, bias, of_norm)
    layers = stages.excitation.layers
    logits, hidden = layers.forward(stages.passes, m, cast_parameters(parameters, m.dtype))
    return stages.excitation.gate(logits), m, hidden


def normalized(
    stages: Stages, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Any, ...]:
    """Return moments, scale, shift ``(N, C)``; mean and inverse deviation of the norm."""
    one = torch.ones_like(*empty_numbers(x, plain.statistics_dtype(x), 1))
    if stages.norm is None:
        zero = torch.zeros_like(one)
        return zero, None, one, zero, None, None
    running = stages.norm.running
    if running is not None and running.fixed:
        # The moments are not needed; the mean is the centre of the gradient's sums.
        mean = running.mean.to(one.dtype).expand_as(one).contiguous()
        variance = mean
    else:
        mean, variance = stages.passes.moments(x)
    found = stages.norm.forward(stages.passes, one, mean, variance, weight, bias)
    return mean, variance, *found


def _squeezed(stages: Stages, x: Tensor, bias: Tensor | None, of_norm) -> Tensor:
    """Average the activation over space; for the identity this follows from the moments."""
    mean, _, scale, shift, mu, _ = of_norm
    if stages.activation == IDENTITY and not stages.fixed:
        m = (mean - mu).mul_(scale)  # scale mean + shift would cancel if the mean is large
        return m if bias is None else m.add_(bias)
    return stages.activated.activated_means(x, scale, shift, stages.activation)


def gradients(ctx, saved: Iterable[Any], dy: Tensor) -> tuple[Any, ...]:
    """Differentiate a region; ``saved`` are its map, parameters, and what was kept of the rest."""
    x, weight, bias, *rest = saved
    at = ctx.parameters - 2
    parameters, kept = tuple(rest[:at]), rest[at:]
    stages, dx = ctx.stages, None
    passes, activated = stages.back(dy)
    mean, variance, scale, shift, mu, inverse, s, m, hidden = kept
    mean, scale, shift = (spread_out(each, x) for each in (mean, scale, shift))
    variance = mean if variance is None else variance
    s = torch.ones_like(mean) if s is None else s
    numbers = (mean, scale, shift, stages.activation, stages.excitation is not None)
    b, d, *rest = activated.activated_sums(dy, x, *numbers)
    k, of_layers = torch.zeros_like(s), [None] * len(parameters)
    if stages.excitation is not None:
        with in_full_precision(dy):
            d_logits = stages.excitation.gradient(rest[0], s)
            given = (m, hidden, cast_parameters(parameters, m.dtype))
            d_m, of_layers = stages.excitation.layers.backward(passes, d_logits, *given)
        k = d_m / x.shape[2:].numel()
        b, d = (
            torch.addcmul(s * each, k, of_k) for each, of_k in zip((b, d), rest[1:], strict=True)
        )
    d_mean, d_variance, d_weight, d_bias = torch.zeros_like(k), None, None, None
    if stages.norm is not None:
        of_norm = (torch.ones_like(s), mean, variance, mu, inverse, weight)
        found = stages.norm.backward(passes, d, b, *of_norm)
        # None rather than 0, which would turn an infinite value into NaN.
        _, d_mean, d_variance, d_weight, d_bias = found
        d_variance = None if stages.fixed else d_variance
    if ctx.needs_input_grad[1]:
        factors = (scale, shift, scale * s, scale * k, mean, d_mean, d_variance)
        dx = activated.activated_gradient(dy, x, *factors, stages.activation)
    of_each = (d_weight, d_bias, *of_layers)
    found = in_dtypes_of((weight, bias, *parameters), of_each)
    return None, dx, dy if ctx.joined else None, *found


def gradients_of_sum(ctx, saved: Iterable[Any], dy: Tensor) -> tuple[Any, ...]:
    """Differentiate a norm with an addition; ``saved`` are its map, parameters, and the rest."""
    x, weight, bias, y, mean, variance, scale, mu, inverse = saved
    stages, dx = ctx.stages, None
    passes, _ = stages.back(dy)
    mean, scale = spread_out(mean, x), spread_out(scale, x)
    variance = mean if variance is None else variance
    b, d, g = passes.gradient_sums(dy, x, mean, y)
    of_norm = (torch.ones_like(mean), mean, variance, mu, inverse, weight)
    _, d_mean, d_variance, *of_norm = stages.norm.backward(passes, d, b, *of_norm)
    if ctx.needs_input_grad[1]:
        d_variance = None if stages.fixed else d_variance
        dx = passes.input_gradient(g, x, scale, mean, d_mean, d_variance, None)
    return None, dx, g, *in_dtypes_of((weight, bias), of_norm)


def spread_out(numbers: Tensor, x: Tensor) -> Tensor:
    """Expand tensors that may have been saved once for all samples to one row per sample."""
    return numbers.expand(x.shape[:2]).contiguous()
