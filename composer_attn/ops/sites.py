"""Attention, then batch norm, in few calls: the stages of :mod:`.stages` for the usual case.

The usual case is a backend that computes whole sites (:mod:`.backends.cpp_site` and, on CUDA,
:mod:`.backends.triton_site`), attentions of this package without changes to their layers, and batch
norm. Any other continuation is computed
from the general stages, which consist of views of the same numbers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.ops import stages
from composer_attn.ops.activations import RELU, Activation
from composer_attn.ops.backends.interface import Passes, SiteCalls
from composer_attn.ops.fused_functions import (
    attend_then_normalize_gradients,
    in_dtypes_of,
    needs_plain_passes,
    scaled_gradients,
)
from composer_attn.ops.manual_gradients import AttentionFirst, Norm
from composer_attn.ops.norm_kinds import BATCH_NORMS, settings
from composer_attn.ops.prepared_norm import PreparedNorm
from composer_attn.ops.recorded import Recorded, differentiable_once
from composer_attn.ops.stages import Excited, Make, Normalized


class ExcitedSite:
    """An attention computed up to its scales, as :class:`~composer_attn.ops.stages.Excited`."""

    __slots__ = (
        "backend", "calls", "excitation", "has_norm", "parameters", "passes", "site", "work", "x",
    )  # fmt: skip

    def __init__(
        self,
        x: Tensor,
        calls: SiteCalls,
        passes: Passes,
        site: Any,
        work: Tensor,
        excitation,
        parameters,
        backend: str,
    ):
        self.x, self.calls, self.passes, self.site, self.work = x, calls, passes, site, work
        self.excitation, self.parameters, self.backend = excitation, parameters, backend
        # Whether a norm has written its numbers to the workspace, which has space for one.
        self.has_norm = False

    def general(self) -> Excited:
        """Return the general stage."""
        mean, variance, s, *_, hidden = self.site.views(self.work)
        of_map = (self.x, self.passes, mean, variance, s)
        return Excited(*of_map, self.excitation, self.parameters, hidden, backend=self.backend)

    def values(self) -> Tensor:
        """Compute the attended map, without gradients."""
        return self.general().values()

    def result(self, make: Make | None = None) -> Tensor:
        """Return the attended map, or the tensor from ``make()`` in its place, differentiable."""
        if make is None:
            return self.general().result()
        if not torch.is_grad_enabled():
            return make()
        return ScaledSite.apply(self, make, self.x, *self.parameters)

    def normalized(
        self, norm: nn.Module, prepared: PreparedNorm | None = None
    ) -> "NormalizedSite | Normalized":
        """Return the stage of a norm called on it, up to writing the output.

        ``prepared`` is the same norm, if it fits the map.
        """
        if prepared is not None:
            of_norm, weight, bias = prepared.settings(self.x), prepared.weight, prepared.bias
            call = prepared.call(of_norm, self.calls, self.work)
        elif isinstance(norm, BATCH_NORMS):
            of_norm, weight, bias = settings(norm, self.x.shape)
            call = self.calls.prepare_norm(self.work, weight, bias, of_norm.eps, of_norm.running)
        else:
            return self.general().normalized(norm)
        if call is None or self.has_norm:
            return self.general().normalized_by(of_norm, weight, bias)
        number = 2 if of_norm.running is None else of_norm.running.number
        self.calls.normalize(self.site, self.work, call, number)
        self.has_norm = True
        return NormalizedSite(self, of_norm, weight, bias)


class NormalizedSite:
    """A batch norm computed up to its output, as :class:`~composer_attn.ops.stages.Normalized`."""

    __slots__ = ("bias", "excited", "norm", "weight", "x")

    is_normalized = True
    can_be_added_to = True

    def __init__(
        self, excited: ExcitedSite, norm: Norm, weight: Tensor | None, bias: Tensor | None
    ):
        self.excited, self.norm, self.weight, self.bias = excited, norm, weight, bias
        self.x = excited.x

    def general(self) -> Normalized:
        """Return the general stage."""
        excited = self.excited
        mean, variance, s, scale, shift, mu, inverse, hidden = excited.site.views(excited.work)
        kept = (s, variance, mu, inverse, hidden)
        by_hand = stages.ByHand(AttentionFirst, self.norm, excited.excitation, kept)
        parameters = (self.weight, self.bias, *excited.parameters)
        of_map = (self.x, excited.passes, mean, scale, shift)
        return Normalized(*of_map, by_hand, parameters, backend=excited.backend)

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output, without gradients."""
        excited = self.excited
        return excited.calls.write(excited.site, excited.work, self.x, shortcut, relu)

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the output after addition and ReLU, or the tensor from ``make()`` in its place."""
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        given = (self.x, shortcut, self.weight, self.bias, *self.excited.parameters)
        return AttendThenNormalizeSite.apply(self, relu, make, *given)

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation; with a shortcut, of a ReLU after the addition."""
        if activation == RELU:
            return self.result(True, shortcut)
        return self.general().ended_in(activation, shortcut)


class ScaledSite(Recorded):
    """The output of attention alone (:class:`~composer_attn.ops.fused_functions.Scaled`)."""

    @staticmethod
    def forward(ctx, stage: ExcitedSite, make: Make, x: Tensor, *parameters: Tensor | None):
        """Create the output."""
        ctx.passes, ctx.site, ctx.excitation = stage.passes, stage.site, stage.excitation
        ctx.save_for_backward(x, stage.work, *parameters)
        return make()

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Compute ``dx = s dy + dm / L``, where ``dm`` is the gradient of the means."""
        x, work, *parameters = ctx.saved_tensors
        mean, _, s, *_, hidden = ctx.site.views(work)
        kept = (mean, s, hidden)
        needed = ctx.needs_input_grad[2]
        found = scaled_gradients(ctx.passes, ctx.excitation, dy, x, kept, tuple(parameters), needed)
        return None, None, *found


class AttendThenNormalizeSite(Recorded):
    """The output of attention and batch norm; the gradient is one call."""

    @staticmethod
    def forward(
        ctx,
        stage: NormalizedSite,
        relu: bool,
        make: Callable[[], Tensor] | None,
        x: Tensor,
        shortcut: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        """Write the output, or create a deferred tensor by ``make``."""
        y = stage.values(relu, shortcut) if make is None else make()
        excited = stage.excited
        ctx.calls, ctx.passes, ctx.site = excited.calls, excited.passes, excited.site
        ctx.excitation, ctx.norm = excited.excitation, stage.norm
        ctx.relu, ctx.joined = relu, shortcut is not None
        ctx.save_for_backward(x, y if relu and ctx.joined else None, excited.work, *parameters)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Differentiate it in one call; by plain operations where those are needed."""
        x, y, work, weight, bias, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3]
        if needs_plain_passes(dy):
            return None, None, None, *_general_gradients(ctx, dy, needed)
        dx, g, (d_weight, d_bias, *of_layers) = ctx.calls.gradient(
            *(ctx.site, work, dy, x, y, ctx.relu, ctx.norm.fixed, weight, parameters, needed)
        )
        of_norm = in_dtypes_of((weight, bias), (d_weight, d_bias))
        return None, None, None, dx, g if ctx.joined else None, *of_norm, *of_layers


def _general_gradients(ctx: Any, dy: Tensor, needs_dx: bool) -> tuple[Tensor | None, ...]:
    x, y, work, *parameters = ctx.saved_tensors
    mean, variance, s, scale, shift, mu, inverse, hidden = ctx.site.views(work)
    masked_by = (y if ctx.joined else shift) if ctx.relu else None
    of_map, kept = (x, scale, mean, masked_by), (s, variance, mu, inverse, hidden)
    return attend_then_normalize_gradients(
        *(ctx.passes, AttentionFirst, ctx.norm, ctx.excitation, ctx.joined, dy),
        *(of_map, tuple(parameters), kept, needs_dx),
    )
