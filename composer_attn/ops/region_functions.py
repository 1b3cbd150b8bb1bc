"""Autograd functions of :mod:`.region_sites`, whose gradient is one call of the backend."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_attn.ops.activated_functions import (
    Stages,
    gradients,
    gradients_of_sum,
    spread_out,
)
from composer_attn.ops.activations import Activation
from composer_attn.ops.backends.interface import ActivatedPasses
from composer_attn.ops.backends.table import find_passes
from composer_attn.ops.fused_functions import needs_plain_passes
from composer_attn.ops.manual_gradients import Excitation, Norm
from composer_attn.ops.pending_region import Given, PendingRegion
from composer_attn.ops.recorded import Recorded, differentiable_once
from composer_attn.ops.region_layers import general_numbers


class SiteParts(NamedTuple):
    """The parts of a site; :class:`~.activated_functions.Stages`, before a backend is looked up."""

    backend: str
    activated_by: ActivatedPasses
    activation: Activation
    norm: Norm
    excitation: Excitation | None


class FinishedSite(Recorded):
    """:class:`~.pending_region.Finished`, whose gradient is one call."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: Tensor | None, *parameters) -> Tensor:
        """Compute the output, or create the tensor that represents it."""
        y, pending = given.output(shortcut), given.pending
        of, attention = pending.of, pending.attention
        ctx.calls, ctx.sizes = of.calls, of.numbers.sizes
        # Not the stage itself, which would keep all of its numbers.
        ctx.parts, ctx.joined, ctx.masked = pending.parts, shortcut is not None, given.relu
        ctx.parameters = len(parameters)
        ctx.layers = None if attention is None else attention.layers
        mask, numbers = y if given.relu else None, None if attention is None else attention.numbers
        _, statistics, line, _ = of.numbers
        ctx.save_for_backward(mask, x, statistics, line, numbers, *parameters)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Differentiate it in one call; by plain operations where those are needed."""
        if needs_plain_passes(dy):
            return _general_gradients(ctx, dy)
        y, x, statistics, line, numbers, weight, bias, *parameters = ctx.saved_tensors
        given = (dy, x, y, statistics, line, numbers, weight, ctx.parts.norm.fixed)
        rest = (
            ctx.parts.activation,
            ctx.layers,
            tuple(parameters),
            ctx.sizes,
            ctx.needs_input_grad[1],
        )
        dx, g, (d_weight, d_bias, *of_layers) = ctx.calls.gradient(*given, *rest)
        of_norm = (None if weight is None else d_weight, None if bias is None else d_bias)
        return None, dx, g if ctx.joined else None, *of_norm, *of_layers


class FinishedSiteInPlace(Recorded):
    """:class:`FinishedSite`, applied in place to the tensor that represented the stage before."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: None, *rest) -> Tensor:
        """Return the last argument, which represents the output from now on."""
        *parameters, y = rest
        ctx.mark_dirty(y)
        return FinishedSite.forward(ctx, given, x, shortcut, *parameters)

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Differentiate the region; the previous history of the tensor receives no gradient."""
        return *FinishedSite.backward(ctx, dy), None


class SummedSite(Recorded):
    """:class:`~.pending_region.Summed`, whose gradient is one call."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: Tensor | None, weight, bias) -> Tensor:
        """Compute the output, or create the tensor that represents it."""
        y, pending = given.output(shortcut), given.pending
        of = pending.of
        ctx.calls, ctx.sizes, ctx.parts = of.calls, of.numbers.sizes, pending.parts
        ctx.save_for_backward(x, weight, bias, y if given.relu else None, of.numbers.statistics)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Differentiate the sum; without an addition there is no gradient of the shortcut."""
        x, weight, bias, y, statistics = ctx.saved_tensors
        if needs_plain_passes(dy):
            mu, inverse = statistics.view(2, -1)
            scale = inverse if weight is None else inverse * weight
            saved = (x, weight, bias, y, mu, None, scale, mu, inverse)
            ctx.stages = stages_of(ctx.parts, x)
            _, dx, g, d_weight, d_bias = gradients_of_sum(ctx, saved, dy)
        else:
            given = (dy, x, y, statistics, weight, ctx.parts.norm.fixed, ctx.sizes)
            dx, g, found = ctx.calls.sum_gradient(*given, ctx.needs_input_grad[1])
            d_weight, d_bias = found
        of_norm = (None if weight is None else d_weight, None if bias is None else d_bias)
        return None, dx, g if ctx.needs_input_grad[2] else None, *of_norm


def recompute_site(node: Any) -> Tensor:
    """Compute the output of a :class:`FinishedSite` without a mask again, given its node."""
    _, x, statistics, line, numbers, *parameters = node.saved_tensors
    stages = stages_of(node.parts, x)
    mu, _, scale, shift, _, inverse, s, *_ = general_kept(
        statistics, line, numbers, stages.excitation, x
    )
    of_norm = (mu, None, spread_out(scale, x), spread_out(shift, x), mu, inverse)
    return PendingRegion(x, "reference", stages, of_norm, tuple(parameters), s).values()


def stages_of(parts: SiteParts, x: Tensor) -> Stages:
    """Return the stages that the general gradient is computed by."""
    return Stages(find_passes(parts.backend, x), *parts[1:])


def _general_gradients(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    y, x, statistics, line, numbers, *parameters = ctx.saved_tensors
    if y is not None:
        dy = torch.where(y <= 0, 0, dy)
    ctx.stages = stages_of(ctx.parts, x)
    found = general_kept(statistics, line, numbers, ctx.stages.excitation, x)
    return gradients(ctx, (x, *parameters, *found), dy)


def general_kept(
    statistics: Tensor,
    line: Tensor,
    numbers: Tensor | None,
    excitation: Excitation | None,
    x: Tensor,
) -> tuple[Any, ...]:
    """Return what the general gradient needs: of the norm, the scales, and of the layers."""
    mu, inverse = statistics.view(2, -1)
    scale, shift = line.view(2, 1, -1)
    of_attention: tuple[Tensor | None, ...] = (None, None, None)
    if numbers is not None and excitation is not None:
        of_attention = general_numbers(numbers, excitation, x)
    return mu, None, scale, shift, mu, inverse, *of_attention
