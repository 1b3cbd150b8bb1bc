"""One autograd region over two passes forward and two passes backward.

Forward, ``moments`` reads the feature map, the head (:mod:`composer_attn.ops.head`) works on
``(N, C)`` tensors under ordinary autograd, and ``affine`` reads the map again and writes the
output. Backward, the gradient of ``affine`` sums over space, ordinary autograd takes the sums
through the head, and the gradient of ``moments`` writes the whole input gradient in one pass, since
``affine`` left it the output's gradient to finish. Kept for backward: the input, and ``(N, C)``
tensors.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass
class Region:
    """What the two halves of a region share.

    Attributes:
        passes: the four passes, as :mod:`composer_attn.ops.passes` defines them.
        relu: whether a ReLU ends the region.
        finishes: whether the input needs a gradient, so that the backward of ``Moments`` runs.
        gradient: left by the backward of ``Affine`` for that of ``Moments``.
    """

    passes: ModuleType
    relu: bool
    finishes: bool = False
    gradient: tuple[Any, ...] | None = None


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
        dy, x, scale, mean, mask = ctx.region.gradient
        ctx.region.gradient = None
        arguments = (dy, x, scale, mean, d_mean, d_variance, mask)
        return ctx.region.passes.input_gradient(*arguments), None


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
        ctx.region, ctx.joined = region, shortcut is not None
        origin = torch.addcmul(shift, scale, centre, value=-1)
        y = region.passes.affine(x, scale, origin, shortcut, region.relu)
        masked_by = (y if ctx.joined else origin) if region.relu else None
        ctx.save_for_backward(x, scale, centre, masked_by)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Sum the gradient over space, and keep what ``Moments`` needs of it."""
        d_shift, d_scale, dy = _sums(ctx, dy, *ctx.saved_tensors)
        return d_scale, d_shift, dy if ctx.needs_input_grad[2] else None, None, None, None


class NormalizedAffine(torch.autograd.Function):
    """``Affine`` with the scale and shift that normalize ``s x`` by the batch's statistics."""

    @staticmethod
    def forward(
        ctx,
        s: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shortcut: Tensor | None,
        x: Tensor,
        eps: float,
        region: Region,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Write the output; return it with mean and variance ``(C,)`` of ``s x``."""
        ctx.region, ctx.joined = region, shortcut is not None
        found = region.passes.normalization(s, mean, variance, weight, bias, eps)
        scale, shift, mu, var, inverse = found
        y = region.passes.affine(x, scale, shift, shortcut, region.relu)
        masked_by = (y if ctx.joined else shift) if region.relu else None
        of_norm = (variance, mu, inverse, weight, bias)
        ctx.save_for_backward(x, scale, mean, masked_by, s, *of_norm)
        ctx.mark_non_differentiable(mu, var)
        return y, mu, var

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, *_: Tensor):
        """Sum the gradient over space, and keep what ``Moments`` needs of it."""
        *of_map, s, variance, mu, inverse, weight, bias = ctx.saved_tensors
        mean = of_map[2]
        d_shift, d_scale, dy = _sums(ctx, dy, *of_map)
        d_s, d_mean, d_variance, d_weight, d_bias = ctx.region.passes.normalization_gradient(
            d_scale, d_shift, s, mean, variance, mu, inverse, weight
        )
        d_weight = None if weight is None else d_weight.to(weight.dtype)
        d_bias = None if bias is None else d_bias.to(bias.dtype)
        of_shortcut = dy if ctx.needs_input_grad[5] else None
        return d_s, d_mean, d_variance, d_weight, d_bias, of_shortcut, None, None, None


def _sums(ctx, dy: Tensor, x: Tensor, scale: Tensor, centre: Tensor, mask: Tensor | None):
    """Run the first pass backward, and leave to ``Moments`` what the second one needs."""
    by = (scale, mask) if mask is not None and not ctx.joined else mask
    d_shift, d_scale, dy = ctx.region.passes.gradient_sums(dy, x, centre, by)
    if ctx.region.finishes:
        ctx.region.gradient = (dy, x, scale, centre, None if ctx.joined else by)
    return d_shift, d_scale, dy
