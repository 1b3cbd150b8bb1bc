"""One autograd region over two passes forward and two passes backward.

Forward, ``moments`` reads the feature map, arithmetic on ``(N, C)`` tensors follows, and ``affine``
reads the map again and writes the output. Backward, one pass sums the gradient over space, the sums
go back through the arithmetic, and a second pass writes the whole input gradient. Kept for
backward: the input, and ``(N, C)`` tensors.

Of attention and batch norm, :class:`Whole` does all of that. For anything else (attention alone,
layers of a user's own) :class:`Moments` and :class:`Affine` are the passes, and what lies between
them (:mod:`composer_attn.ops.head`) is left to ordinary autograd; the backward of ``Affine`` leaves
to that of ``Moments`` what its pass needs.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from composer_attn.ops.orders import Excitation, Norm, Order


@dataclass
class Region:
    """What the two halves of a region share.

    Attributes:
        passes: the four passes, as :mod:`composer_attn.ops.passes` defines them.
        relu: whether a ReLU ends the region.
        finishes: whether the input needs a gradient, so that the backward of ``Moments`` runs.
        left: by the backward of ``Affine`` for that of ``Moments``.
    """

    passes: ModuleType
    relu: bool
    finishes: bool = False
    left: tuple[Any, ...] | None = None


class Moments(torch.autograd.Function):
    """``x -> mean, variance``; its backward also finishes what ``Affine`` began."""

    @staticmethod
    def forward(ctx, x: Tensor, region: Region) -> tuple[Tensor, Tensor]:
        """Gather mean and variance ``(N, C)``."""
        ctx.region = region
        region.finishes = ctx.needs_input_grad[0]
        return region.passes.moments(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor, None]:
        """``dx = scale dy + d_mean / L + 2 d_variance (x - mean) / L``."""
        # Autograd hands over gradients of any strides, of a sum say.
        left, ctx.region.left = ctx.region.left, None
        return _finish(ctx.region, left, d_mean.contiguous(), d_variance.contiguous()), None


class Affine(torch.autograd.Function):
    """``relu(scale (x - centre) + shift + shortcut)``; its input gradient is left to Moments."""

    @staticmethod
    def forward(
        ctx,
        scale: Tensor,
        shift: Tensor,
        shortcut: Tensor | None,
        x: Tensor,
        centre: Tensor,
        region: Region,
    ) -> Tensor:
        """Write the output; ``x`` comes detached."""
        ctx.region, ctx.joined, scale = region, shortcut is not None, scale.contiguous()
        origin = torch.addcmul(shift, scale, centre, value=-1)
        y = region.passes.affine(x, scale, origin, shortcut, region.relu)
        masked_by = (y if ctx.joined else origin) if region.relu else None
        ctx.save_for_backward(x, scale, centre, masked_by)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space, and keep what ``Moments`` needs of it."""
        d_shift, d_scale, dy, left = _sums(ctx, dy, *ctx.saved_tensors)
        if ctx.region.finishes:
            ctx.region.left = left
        return d_scale, d_shift, dy if ctx.needs_input_grad[2] else None, None, None, None


def in_full_precision(x: Tensor) -> AbstractContextManager:
    """Keep autocast from the layers: on ``(N, C)`` numbers it gains nothing."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def compute(
    x: Tensor,
    shortcut: Tensor | None,
    norm: Norm,
    excitation: Excitation,
    order: type[Order],
    region: Region,
    weight: Tensor | None,
    bias: Tensor | None,
    *parameters: Tensor | None,
) -> tuple[Tensor, tuple, tuple]:
    """Compute attention and batch norm, and move the running statistics.

    Returns:
        The output; what the passes backward need; what the arithmetic between them needs.
    """
    passes = region.passes
    mean, variance = passes.moments(x)
    arguments = (mean, variance, weight, bias, norm, excitation, parameters)
    scale, shift, kept = order.forward(passes, *arguments)
    y = passes.affine(x, scale, shift, shortcut, region.relu)
    masked_by = (shift if shortcut is None else y) if region.relu else None
    return y, (x, scale, mean, masked_by), kept


class Whole(torch.autograd.Function):
    """:func:`compute`, differentiated by hand."""

    @staticmethod
    def forward(ctx, *inputs: Any) -> Tensor:
        """Compute the output."""
        _, shortcut, norm, ctx.excitation, ctx.order, ctx.region, *parameters = inputs
        ctx.joined, ctx.fixed = shortcut is not None, norm.fixed
        y, of_map, kept = compute(*inputs)
        ctx.save_for_backward(*of_map, *parameters, *kept)
        ctx.parameters = len(parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space, go back through norm and attention, write that of ``x``."""
        saved, dx, end = ctx.saved_tensors, None, 4 + ctx.parameters
        of_map, (weight, bias, *parameters), kept = saved[:4], saved[4:end], saved[end:]
        d_shift, d_scale, dy, left = _sums(ctx, dy, *of_map)
        with in_full_precision(dy):
            d_mean, d_variance, d_weight, d_bias, of_layers = ctx.order.backward(
                ctx.region.passes, d_scale, d_shift, of_map[2],
                weight, ctx.fixed, ctx.excitation, parameters, kept,
            )  # fmt: skip
        if ctx.needs_input_grad[0]:
            dx = _finish(ctx.region, left, d_mean, d_variance)
        of_norm = (
            None if p is None else d.to(p.dtype) for p, d in ((weight, d_weight), (bias, d_bias))
        )
        return dx, dy if ctx.joined else None, *[None] * 4, *of_norm, *of_layers


def _sums(ctx, dy: Tensor, x: Tensor, scale: Tensor, centre: Tensor, mask: Tensor | None):
    """Run the first pass backward; return its sums, the gradient, and what the second one needs."""
    shift = None if ctx.joined else mask
    by = mask if shift is None else (scale, shift)
    d_shift, d_scale, dy = ctx.region.passes.gradient_sums(dy, x, centre, by)
    return d_shift, d_scale, dy, (dy, x, scale, centre, shift)


def _finish(region: Region, left: tuple[Any, ...], d_mean: Tensor, d_variance: Tensor) -> Tensor:
    """Run the second pass backward, which writes the input gradient."""
    *of_map, shift = left
    return region.passes.input_gradient(*of_map, d_mean, d_variance, shift)
