"""Autograd functions over two passes forward and two passes backward.

In the forward, ``moments`` reads the feature map, arithmetic on ``(N, C)`` tensors follows, and
``affine`` reads the map again and writes the output. In the backward, one pass sums the gradient
over space, the sums are backpropagated through the arithmetic, and a second pass writes the
complete input gradient. Saved for backward are the input and ``(N, C)`` tensors.

:class:`AttendThenNormalize` does all of this for attention and batch norm. In other cases
(attention alone, custom layers) :class:`Moments` and :class:`Affine` are the passes, and the
arithmetic between them (:mod:`composer_attn.ops.autograd_path`) is differentiated by autograd.
``Moments`` also returns a *way*, an edge of the autograd graph used only by ``Affine``: along it,
autograd propagates the output's gradient back to ``Moments``, whatever the arithmetic depends on,
and however often any part of the graph is backpropagated through.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer_attn.ops.autograd_path import traced
from composer_attn.ops.backends import reference as plain
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.manual_gradients import Excitation, Norm, Order
from composer_attn.ops.recorded import Recorded, differentiable_once, in_full_precision


@dataclass
class Region:
    """State shared by the two halves of a region; constant after the forward.

    Attributes:
        passes: the four passes, as :mod:`composer_attn.ops.backends.reference` defines them.
        relu: whether the region ends with a ReLU.
        scale: scale ``(N, C)`` of the output, detached; the input gradient is a multiple of it.
        shift: shift ``(N, C)``, which with the scale determines the mask of the ReLU; ``None`` if
            the gradient that reaches ``Moments`` is masked already, or there is no ReLU.
    """

    passes: Any
    relu: bool
    scale: Tensor | None = None
    shift: Tensor | None = None

    def back(self, *gradients: Tensor | None) -> Passes:
        """Return the passes for the backward; those of plain torch for batched gradients."""
        return _backward_passes(self.passes, *gradients)


class Moments(Recorded):
    """``x -> mean, variance, way``, the last only for :class:`Affine`."""

    @staticmethod
    def forward(ctx, x: Tensor, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean and variance ``(N, C)``; the way is ``x`` itself."""
        ctx.region = region
        ctx.set_materialize_grads(False)
        mean, variance = region.passes.moments(x)
        ctx.save_for_backward(x, mean)
        return mean, variance, x

    @staticmethod
    @differentiable_once
    def backward(
        ctx, d_mean: Tensor | None, d_variance: Tensor | None, g: Tensor | None
    ) -> tuple[Tensor, None]:
        """Compute ``dx = scale g + d_mean / L + 2 d_variance (x - mean) / L``; ``None`` is 0."""
        x, mean = ctx.saved_tensors
        region = ctx.region
        d_mean = torch.zeros_like(mean) if d_mean is None else d_mean
        if g is None:
            return plain.statistics_gradient(x, mean, d_mean, d_variance), None
        arguments = (region.scale, mean, d_mean, d_variance, region.shift)
        return region.back(g, d_mean, d_variance).input_gradient(g, x, *arguments), None


class Affine(Recorded):
    """``relu(scale (x - centre) + shift + shortcut)``; ``Moments`` computes its input gradient.

    Its gradient for the way is the output's, propagated only through the addition: ``Moments``
    writes the complete input gradient, and applies the scale (and the ReLU's mask) in that pass.
    """

    @staticmethod
    def forward(
        ctx,
        scale: Tensor,
        shift: Tensor,
        shortcut: Tensor | None,
        x: Tensor,
        centre: Tensor,
        way: Tensor,
        region: Region,
    ) -> Tensor:
        """Write the output; ``x`` is detached."""
        ctx.region, ctx.joined, scale = region, shortcut is not None, scale.contiguous()
        origin = torch.addcmul(shift, scale, centre, value=-1).contiguous()
        y = region.passes.affine(x, scale, origin, shortcut, region.relu)
        masked_by = (y if ctx.joined else origin) if region.relu else None
        # Detached: otherwise the autograd graph would contain a reference cycle.
        region.scale = scale.detach()
        region.shift = origin if region.relu and not ctx.joined else None
        ctx.save_for_backward(x, scale, centre, masked_by)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space."""
        passes, needed = ctx.region.back(dy), ctx.needs_input_grad
        d_shift, d_scale, g, _ = _sums(passes, ctx.joined, dy, *ctx.saved_tensors)
        d_shortcut, d_way = (g if needed[i] else None for i in (2, 5))
        return d_scale, d_shift, d_shortcut, None, None, d_way, None


class AttendThenNormalize(Recorded):
    """The output of attention and batch norm, whose scale and shift are computed already.

    ``stage`` is a :class:`composer_attn.ops.stages.Normalized` with a manual gradient.
    """

    @staticmethod
    def forward(
        ctx,
        stage: Any,
        relu: bool,
        make: Callable[[], Tensor] | None,
        x: Tensor,
        shortcut: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        """Write the output, or create a deferred tensor by ``make``."""
        y = stage.values(relu, shortcut) if make is None else make()
        by_hand = stage.by_hand
        ctx.excitation, ctx.order, ctx.norm = by_hand.excitation, by_hand.order, by_hand.norm
        ctx.passes, ctx.joined, ctx.parameters = stage.passes, shortcut is not None, len(parameters)
        ctx.masked, masked_by = relu, (y if ctx.joined else stage.shift) if relu else None
        of_map = (x, stage.scale, stage.centre, masked_by)
        ctx.save_for_backward(*of_map, *parameters, *by_hand.kept)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space, differentiate norm and attention, and write ``dx``."""
        saved, end = ctx.saved_tensors, 4 + ctx.parameters
        given = (ctx.passes, ctx.order, ctx.norm, ctx.excitation, ctx.joined, dy)
        kept = (saved[:4], saved[4:end], saved[end:])
        gradients = attend_then_normalize_gradients(*given, *kept, ctx.needs_input_grad[3])
        return None, None, None, *gradients


def attend_then_normalize_gradients(
    passes: Passes,
    order: type[Order],
    norm: Norm,
    excitation: Excitation,
    joined: bool,
    dy: Tensor,
    of_map: tuple[Tensor, Tensor, Tensor, Tensor | None],
    parameters: tuple[Tensor | None, ...],
    kept: tuple[Tensor | None, ...],
    needs_dx: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the map, the shortcut, and the parameters of norm and layers.

    ``of_map`` are the map, scale and centre, and what a final ReLU is masked by: the output if
    there is a shortcut, else the shift.
    """
    (weight, bias, *of_attention), passes, dx = parameters, _backward_passes(passes, dy), None
    d_shift, d_scale, dy, left = _sums(passes, joined, dy, *of_map)
    with in_full_precision(dy):
        d_mean, d_variance, d_weight, d_bias, of_layers = order.backward(
            passes, d_scale, d_shift, of_map[2], weight, norm, excitation, tuple(of_attention), kept
        )
    if needs_dx:
        dy, x, slope, mean, shift = left
        # None rather than 0, which would turn an infinite value into NaN.
        of_variance = None if norm.fixed else d_variance
        dx = passes.input_gradient(dy, x, slope, mean, d_mean, of_variance, shift)
    of_norm = in_dtypes_of((weight, bias), (d_weight, d_bias))
    return dx, dy if joined else None, *of_norm, *of_layers


class Scaled(Recorded):
    """The output of attention alone, whose scales are computed already, with manual gradient."""

    @staticmethod
    def forward(
        ctx,
        make: Callable[[], Tensor],
        passes: Passes,
        excitation: Excitation,
        kept: tuple[Tensor, Tensor, Tensor | None],
        x: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        """Create the output; ``kept`` are means, scales and the tensors saved by the layers."""
        ctx.passes, ctx.excitation = passes, excitation
        ctx.save_for_backward(x, *kept, *parameters)
        return make()

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Compute ``dx = s dy + dm / L``, where ``dm`` is the gradient of the means."""
        x, mean, s, hidden, *parameters = ctx.saved_tensors
        given = (ctx.passes, ctx.excitation, dy, x, (mean, s, hidden), tuple(parameters))
        return None, None, None, None, *scaled_gradients(*given, ctx.needs_input_grad[4])


def scaled_gradients(
    passes: Passes,
    excitation: Excitation,
    dy: Tensor,
    x: Tensor,
    kept: tuple[Tensor, Tensor, Tensor | None],
    parameters: tuple[Tensor | None, ...],
    needs_dx: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the map and of the layers' parameters, for attention alone."""
    mean, s, hidden = kept
    passes, dx = _backward_passes(passes, dy), None
    _, d_s, dy, _ = _sums(passes, False, dy, x, s, torch.zeros_like(s), None)
    with in_full_precision(dy):
        d_logits = excitation.gradient(d_s, s)
        d_mean, of_layers = excitation.layers.backward(passes, d_logits, mean, hidden, parameters)
    if needs_dx:
        dx = passes.input_gradient(dy, x, s, mean, d_mean, None, None)
    return dx, *of_layers


class Shifted(Recorded):
    """``scale (x - centre) + shift``, with separate gradients of ``x``, scale and shift."""

    @staticmethod
    def forward(
        ctx,
        make: Callable[[], Tensor],
        passes: Passes,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | None,
        centre: Tensor | None,
    ) -> Tensor:
        """Create the output; without shift and centre it is ``scale x``."""
        ctx.passes, ctx.shifted = passes, shift is not None
        ctx.save_for_backward(x, scale, centre)
        return make()

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Compute ``dx = scale dy``, and the other two gradients by sums over space."""
        x, scale, centre = ctx.saved_tensors
        scale = scale.contiguous()
        passes, zero = _backward_passes(ctx.passes, dy), torch.zeros_like(scale)
        by = zero if centre is None else centre.contiguous()
        d_shift, d_scale, dy, _ = _sums(passes, False, dy, x, scale, by, None)
        dx = None
        if ctx.needs_input_grad[2]:
            dx = passes.input_gradient(dy, x, scale, zero, zero, None, None)
        return None, None, dx, d_scale, d_shift if ctx.shifted else None, None


def _backward_passes(passes: Passes, *gradients: Tensor | None) -> Passes:
    """Return the passes for the backward; those of plain torch for batched gradients."""
    return getattr(passes, "in_plain_torch", plain) if needs_plain_passes(*gradients) else passes


def needs_plain_passes(*gradients: Tensor | None) -> bool:
    """Return whether tracing is active or gradients are batched, which no kernel supports."""
    return traced() or any(map(_is_batch, gradients))


def in_dtypes_of(
    parameters: Iterable[Tensor | None], gradients: Iterable[Tensor | None]
) -> list[Tensor | None]:
    """Cast gradients to the dtypes of their parameters; absent ones remain None."""
    pairs = zip(parameters, gradients, strict=True)
    return [None if p is None or d is None else d.to(p.dtype) for p, d in pairs]


def _sums(
    passes: Passes, joined: bool, dy: Tensor, x: Tensor, scale: Tensor, centre: Tensor,
    mask: Tensor | None,
):  # fmt: skip
    """Run the first backward pass; return its sums, the gradient, and the second one's inputs."""
    shift = None if joined else mask
    by = mask if shift is None else (scale, shift)
    d_shift, d_scale, dy = passes.gradient_sums(dy, x, centre, by)
    return d_shift, d_scale, dy, (dy, x, scale, centre, shift)


def _is_batch(gradient: Tensor | None) -> bool:
    """Return whether a gradient is batched (``is_grads_batched``, vectorized Jacobians)."""
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)
