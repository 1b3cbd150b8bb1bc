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
        positions = x[0, 0].numel()
        factor = d_variance * (2 / positions)
        offset = d_mean / positions - factor * mean
        return ctx.region.passes.input_gradient(dy, x, scale, factor, offset, mask), None


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
        x, scale, centre, mask = ctx.saved_tensors
        if mask is not None and not ctx.joined:
            mask = (scale, mask)
        d_shift, d_scale, dy = ctx.region.passes.gradient_sums(dy, x, centre, mask)
        if ctx.region.finishes:
            ctx.region.gradient = (dy, x, scale, centre, None if ctx.joined else mask)
        return d_scale, d_shift, dy if ctx.needs_input_grad[2] else None, None, None, None
