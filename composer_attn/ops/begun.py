"""Norm, activation and attention begun, each at its call, finished once it is known what follows.

A :class:`Begun` is a feature map and the numbers ``(N, C)`` by which it becomes what a norm puts
out, its activation, or the attention after that; the map itself can be written later, and any
number of times. The order "attention, norm" has stages of its own
(:mod:`composer_attn.ops.stages`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.ops.activated_functions import (
    Stages,
    excited,
    gradients,
    gradients_of_sum,
    normalized,
)
from composer_attn.ops.activations import IDENTITY, RELU, Activation
from composer_attn.ops.autograd_path import running_statistics
from composer_attn.ops.backends import activated_reference
from composer_attn.ops.backends.table import find_activated, find_passes
from composer_attn.ops.excitations import Described
from composer_attn.ops.fused_functions import in_full_precision
from composer_attn.ops.manual_gradients import Excitation, Norm

if TYPE_CHECKING:  # which imports this package
    from composer_attn.attention.base import ChannelAttention

Make = Callable[[], Tensor]


@dataclass(frozen=True)
class Begun:
    """A feature map, and what has been called on it so far.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        backend: who runs the passes.
        stages: what has been called.
        of_norm: moments, scale and shift ``(N, C)``, then mean and inverse deviation ``(C,)``.
        parameters: weight and bias of the norm, then those of the attention's layers.
        s: the scales ``(N, C)`` of the attention; ``None`` where none has been called.
        of_attention: what its gradient needs besides: averages, and what the layers keep.
    """

    x: Tensor
    backend: str
    stages: Stages
    of_norm: tuple[Any, ...]
    parameters: tuple[Tensor | None, ...]
    s: Tensor | None = None
    of_attention: tuple[Tensor | None, Tensor | None] = (None, None)

    @property
    def is_normalized(self) -> bool:
        """Whether it is what a norm puts out, and nothing else has been called."""
        return self.s is None and self.stages.activation == IDENTITY

    @property
    def can_be_added_to(self) -> bool:
        """Whether an addition may be computed along."""
        return self.s is not None or self.is_normalized

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output, maybe after an addition and a ReLU, without gradients."""
        stages, (_, _, scale, shift, *_) = self.stages, self.of_norm
        with torch.no_grad():
            if stages.activation == IDENTITY:
                if self.s is not None:
                    scale, shift = scale * self.s, shift * self.s
                return stages.passes.affine(self.x, scale, shift, shortcut, relu)
            s = torch.ones_like(scale) if self.s is None else self.s
            y = stages.activated.activate(self.x, scale, shift, s, shortcut, stages.activation)
            return y.relu_() if relu else y

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the output, after an addition and a ReLU; ``make()`` may stand for it."""
        if relu and shortcut is None and self.is_normalized:
            return self.activated(RELU).result(make=make)
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        function = Summed if self.is_normalized else Finished
        return function.apply(_Given(self, relu, make), self.x, shortcut, *self.parameters)

    def become(self, y: Tensor) -> None:
        """Make ``y``, which stood for something before, stand for this in autograd's records."""
        FinishedInPlace.apply(_Given(self, False, lambda: y), self.x, None, *self.parameters, y)

    def activated(self, activation: Activation) -> "Begun":
        """Call an activation on what a norm puts out."""
        found = find_activated(self.backend, self.x, activation)
        return replace(self, stages=replace(self.stages, activated=found, activation=activation))

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation, maybe a ReLU after an addition."""
        if shortcut is not None:
            return self.result(True, shortcut)
        return self.activated(activation).result()

    def attended(self, excitation: Excitation, parameters: tuple[Tensor | None, ...]) -> "Begun":
        """Call an attention, given by its layers and gate, and the layers' parameters."""
        if self.stages.activation == IDENTITY:
            return self.activated(IDENTITY)._attended(excitation, parameters)
        return self._attended(excitation, parameters)

    def _attended(self, excitation: Excitation, parameters: tuple[Tensor | None, ...]) -> "Begun":
        stages = replace(self.stages, excitation=excitation)
        with in_full_precision(self.x), torch.no_grad():
            s, m, hidden = excited(stages, self.x, self.parameters[1], self.of_norm, parameters)
        given = (*self.parameters, *parameters)
        return replace(self, stages=stages, parameters=given, s=s, of_attention=(m, hidden))

    def kept(self) -> tuple[Tensor | None, ...]:
        """Return what the gradient needs besides map and parameters, in as little as there is."""
        mean, variance, scale, shift, mu, inverse = self.of_norm
        if self.stages.norm is not None:
            # Of every sample the same. And the gradient's sums may be about the mean of the batch,
            # too: what is left of the means by sample is then 0, in the sum of squares as here.
            mean, variance = mu, None
            scale, shift = scale[:1].clone(), shift[:1].clone()
        return mean, variance, scale, shift, mu, inverse, self.s, *self.of_attention


class _Given(NamedTuple):
    """What an autograd function is given besides tensors."""

    begun: Begun
    relu: bool
    make: Make | None

    def output(self, shortcut: Tensor | None) -> Tensor:
        """Write the output, or make what stands for it."""
        return self.begun.values(self.relu, shortcut) if self.make is None else self.make()


class Finished(torch.autograd.Function):
    """A region that was begun, differentiated by hand."""

    @staticmethod
    def forward(ctx, given: _Given, x: Tensor, shortcut: Tensor | None, *parameters) -> Tensor:
        """Write the output, or make what stands for it."""
        y, begun = given.output(shortcut), given.begun
        ctx.stages, ctx.joined, ctx.parameters = begun.stages, shortcut is not None, len(parameters)
        mask = y if given.relu else None
        ctx.save_for_backward(mask, x, *parameters, *begun.kept())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Cut the gradient off where the ReLU does, then as any region."""
        mask, *saved = ctx.saved_tensors
        if mask is not None:
            dy = torch.where(mask <= 0, 0, dy)
        return gradients(ctx, saved, dy)


class FinishedInPlace(torch.autograd.Function):
    """The same, in the place of what came before in it."""

    @staticmethod
    def forward(ctx, given: _Given, x: Tensor, shortcut: None, *rest) -> Tensor:
        """Return the last tensor that is given, which stands for the output from now on."""
        *parameters, y = rest
        ctx.mark_dirty(y)
        return Finished.forward(ctx, given, x, shortcut, *parameters)

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Nothing of the gradient goes the way that the tensor came."""
        return *Finished.backward(ctx, dy), None


class Summed(torch.autograd.Function):
    """A norm that was begun, and what may be added to it, differentiated by hand."""

    @staticmethod
    def forward(ctx, given: _Given, x: Tensor, shortcut: Tensor | None, weight, bias) -> Tensor:
        """Write the output, or make what stands for it."""
        y, begun = given.output(shortcut), given.begun
        ctx.stages = begun.stages
        mean, variance, scale, _, mu, inverse, *_ = begun.kept()
        mask = y if given.relu else None
        ctx.save_for_backward(x, weight, bias, mask, mean, variance, scale, mu, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """As of any sum; where nothing was added, nothing has its gradient."""
        _, dx, d_shortcut, *of_norm = gradients_of_sum(ctx, dy)
        return None, dx, d_shortcut if ctx.needs_input_grad[2] else None, *of_norm


def begin(x: Tensor, norm: _BatchNorm, backend: str) -> Begun:
    """Begin with a batch norm: all of its call but the map to write.

    Args:
        x: feature map ``(N, C, *spatial)`` that the norm takes
            (:func:`composer_attn.ops.fused.fits_norm`).
        norm: in either mode.
        backend: who runs the passes.
    """
    of_norm = Norm(norm.eps, running_statistics(norm, x.numel() // x.shape[1]))
    # What an activation takes part in is found, and built, once one is met.
    passes = find_passes(backend, x)
    stages = Stages(passes, activated_reference, IDENTITY, of_norm, None)
    with in_full_precision(x), torch.no_grad():
        found = normalized(stages, x, norm.weight, norm.bias)
    return Begun(x, backend, stages, found, (norm.weight, norm.bias))


def excitation_of(
    attention: "ChannelAttention | Described",
) -> tuple[Excitation, tuple[Tensor | None, ...]] | None:
    """Return layers, gate and parameters of an attention that is differentiated by hand."""
    if isinstance(attention, Described):
        return attention.excitation, attention.parameters
    dtypes = {each.dtype for each in attention.parameters()}
    found = attention.by_hand(dtypes.pop()) if len(dtypes) == 1 else None
    if found is None:
        return None
    gate = (attention.gated, attention.gate_slope, attention.gate_clips)
    return Excitation(found[0], *gate), found[1]
