"""One autograd region over two passes forward and two passes backward.

Forward, ``moments`` reads the feature map, arithmetic on ``(N, C)`` tensors follows, and ``affine``
reads the map again and writes the output. Backward, one pass sums the gradient over space, the sums
go back through the arithmetic, and a second pass writes the whole input gradient. Kept for
backward: the input, and ``(N, C)`` tensors.

Of attention and batch norm, :class:`Whole` does all of that. For anything else (attention alone,
layers of a user's own) :class:`Moments` and :class:`Affine` are the passes, and what lies between
them (:mod:`composer_attn.ops.autograd_path`) is left to ordinary autograd. ``Moments`` also returns
a *way*, which ``Affine`` alone takes: by it, autograd carries the output's gradient back to
``Moments``, whatever the arithmetic depends on, and however often anyone goes back through any
part of it.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from composer_attn.ops.autograd_path import traced
from composer_attn.ops.backends import reference as plain
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.manual_gradients import Excitation


@dataclass
class Region:
    """What the two halves of a region share. Nothing in it changes once the forward has run.

    Attributes:
        passes: the four passes, as :mod:`composer_attn.ops.backends.reference` defines them.
        relu: whether a ReLU ends the region.
        scale: of the output, ``(N, C)``, detached; the input gradient is a multiple of it.
        shift: what else the sign of a ReLU's input depends on; ``None`` where the gradient that
            reaches ``Moments`` has been cut off by the ReLU already, or there is none.
    """

    passes: Any
    relu: bool
    scale: Tensor | None = None
    shift: Tensor | None = None

    def back(self, *gradients: Tensor | None) -> Passes:
        """Return the passes to go back by: plain ones where gradients come in batches."""
        return _backward_passes(self.passes, *gradients)


class Moments(torch.autograd.Function):
    """``x -> mean, variance, way``, the last for :class:`Affine` alone."""

    @staticmethod
    def forward(ctx, x: Tensor, region: Region) -> tuple[Tensor, Tensor, Tensor]:
        """Gather mean and variance ``(N, C)``; the way is ``x`` itself."""
        ctx.region = region
        ctx.set_materialize_grads(False)
        mean, variance = region.passes.moments(x)
        ctx.save_for_backward(x, mean)
        return mean, variance, x

    @staticmethod
    @once_differentiable
    def backward(
        ctx, d_mean: Tensor | None, d_variance: Tensor | None, g: Tensor | None
    ) -> tuple[Tensor, None]:
        """``dx = scale g + d_mean / L + 2 d_variance (x - mean) / L``, ``None`` being 0."""
        x, mean = ctx.saved_tensors
        region = ctx.region
        d_mean = torch.zeros_like(mean) if d_mean is None else d_mean
        if g is None:
            return plain.statistics_gradient(x, mean, d_mean, d_variance), None
        arguments = (region.scale, mean, d_mean, d_variance, region.shift)
        return region.back(g, d_mean, d_variance).input_gradient(g, x, *arguments), None


class Affine(torch.autograd.Function):
    """``relu(scale (x - centre) + shift + shortcut)``; its input gradient is left to ``Moments``.

    The gradient that it gives for the way is the output's, past the addition: ``Moments`` writes
    the whole, and multiplies by the scale (and cuts off by the ReLU) meanwhile.
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
        """Write the output; ``x`` comes detached."""
        ctx.region, ctx.joined, scale = region, shortcut is not None, scale.contiguous()
        origin = torch.addcmul(shift, scale, centre, value=-1).contiguous()
        y = region.passes.affine(x, scale, origin, shortcut, region.relu)
        masked_by = (y if ctx.joined else origin) if region.relu else None
        # Detached: through what it was computed from, the graph would hold itself.
        region.scale = scale.detach()
        region.shift = origin if region.relu and not ctx.joined else None
        ctx.save_for_backward(x, scale, centre, masked_by)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space."""
        passes, needed = ctx.region.back(dy), ctx.needs_input_grad
        d_shift, d_scale, g, _ = _sums(passes, ctx.joined, dy, *ctx.saved_tensors)
        d_shortcut, d_way = (g if needed[i] else None for i in (2, 5))
        return d_scale, d_shift, d_shortcut, None, None, d_way, None


def in_full_precision(x: Tensor) -> AbstractContextManager:
    """Keep autocast from the layers: on ``(N, C)`` numbers it gains nothing."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


class Whole(torch.autograd.Function):
    """The output of attention and batch norm, of which all is known but the map.

    ``stage`` is a :class:`composer_attn.ops.stages.Normalized` that is differentiated by hand.
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
        """Write the output, or make what stands for it."""
        y = stage.values(relu, shortcut) if make is None else make()
        by_hand = stage.by_hand
        ctx.excitation, ctx.order, ctx.fixed = by_hand.excitation, by_hand.order, by_hand.fixed
        ctx.passes, ctx.joined, ctx.parameters = stage.passes, shortcut is not None, len(parameters)
        masked_by = (y if ctx.joined else stage.shift) if relu else None
        of_map = (x, stage.scale, stage.centre, masked_by)
        ctx.save_for_backward(*of_map, *parameters, *by_hand.kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space, go back through norm and attention, write that of ``x``."""
        saved, dx, end = ctx.saved_tensors, None, 4 + ctx.parameters
        of_map, (weight, bias, *parameters), kept = saved[:4], saved[4:end], saved[end:]
        passes = _backward_passes(ctx.passes, dy)
        d_shift, d_scale, dy, left = _sums(passes, ctx.joined, dy, *of_map)
        with in_full_precision(dy):
            d_mean, d_variance, d_weight, d_bias, of_layers = ctx.order.backward(
                passes, d_scale, d_shift, of_map[2],
                weight, ctx.fixed, ctx.excitation, parameters, kept,
            )  # fmt: skip
        if ctx.needs_input_grad[3]:
            dy, x, slope, mean, shift = left
            # Not 0, which makes NaN of an infinite value.
            d_variance = None if ctx.fixed else d_variance
            dx = passes.input_gradient(dy, x, slope, mean, d_mean, d_variance, shift)
        of_norm = in_dtypes_of((weight, bias), (d_weight, d_bias))
        return None, None, None, dx, dy if ctx.joined else None, *of_norm, *of_layers


class Scaled(torch.autograd.Function):
    """The output of attention alone, of which all is known but the map, differentiated by hand."""

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
        """Make the output; ``kept`` are means, scales and what the layers keep."""
        ctx.passes, ctx.excitation = passes, excitation
        ctx.save_for_backward(x, *kept, *parameters)
        return make()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """``dx = s dy + dm / L``, where ``dm`` is the gradient of the means."""
        x, mean, s, hidden, *parameters = ctx.saved_tensors
        passes, dx, zero = _backward_passes(ctx.passes, dy), None, torch.zeros_like(s)
        _, d_s, dy, _ = _sums(passes, False, dy, x, s, zero, None)
        with in_full_precision(dy):
            d_logits = ctx.excitation.gradient(d_s, s)
            d_mean, of_layers = ctx.excitation.layers.backward(
                passes, d_logits, mean, hidden, tuple(parameters)
            )
        if ctx.needs_input_grad[4]:
            dx = passes.input_gradient(dy, x, s, mean, d_mean, None, None)
        return None, None, None, None, dx, *of_layers


class Shifted(torch.autograd.Function):
    """``scale (x - centre) + shift``, which hands on the gradient of each by itself."""

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
        """Make the output; without a shift, and a centre, it is ``scale x``."""
        ctx.passes, ctx.shifted = passes, shift is not None
        ctx.save_for_backward(x, scale, centre)
        return make()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """``dx = scale dy``; over space are summed the other two."""
        x, scale, centre = ctx.saved_tensors
        scale = scale.contiguous()
        zero = torch.zeros_like(scale)
        passes = _backward_passes(ctx.passes, dy)
        by = zero if centre is None else centre.contiguous()
        d_shift, d_scale, dy, _ = _sums(passes, False, dy, x, scale, by, None)
        dx = None
        if ctx.needs_input_grad[2]:
            dx = passes.input_gradient(dy, x, scale, zero, zero, None, None)
        return None, None, dx, d_scale, d_shift if ctx.shifted else None, None


def _backward_passes(passes: Passes, *gradients: Tensor | None) -> Passes:
    """Return the passes to go back by: plain ones where gradients come in batches."""
    by_hand = not needs_plain_passes(*gradients)
    return passes if by_hand else getattr(passes, "in_plain_torch", plain)


def needs_plain_passes(*gradients: Tensor | None) -> bool:
    """Say whether somebody looks on, or gradients come in batches, which no kernel takes."""
    return traced() or any(map(_is_batch, gradients))


def in_dtypes_of(
    parameters: Iterable[Tensor | None], gradients: Iterable[Tensor | None]
) -> list[Tensor | None]:
    """Give gradients the dtype of what they are of; what is absent has none."""
    pairs = zip(parameters, gradients, strict=True)
    return [None if p is None or d is None else d.to(p.dtype) for p, d in pairs]


def _sums(
    passes: Passes, joined: bool, dy: Tensor, x: Tensor, scale: Tensor, centre: Tensor,
    mask: Tensor | None,
):  # fmt: skip
    """Run the first pass backward; return its sums, the gradient, and what the second one needs."""
    shift = None if joined else mask
    by = mask if shift is None else (scale, shift)
    d_shift, d_scale, dy = passes.gradient_sums(dy, x, centre, by)
    return d_shift, d_scale, dy, (dy, x, scale, centre, shift)


def _is_batch(gradient: Tensor | None) -> bool:
    """Say whether many gradients come as one (``is_grads_batched``, vectorized jacobians)."""
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)
