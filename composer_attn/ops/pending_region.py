"""Norm, activation and attention computed up to ``(N, C)`` tensors, completed by what follows.

A :class:`PendingRegion` is a feature map and the ``(N, C)`` tensors that turn it into the output of
a norm, of the activation after it, or of the attention after that. The map itself can be written
later, and any number of times. The order "attention, norm" has its own stages
(:mod:`composer_attn.ops.stages`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from composer_attn.ops.activated_functions import (
    Stages,
    excited,
    gradients,
    gradients_of_sum,
    normalized,
)
from composer_attn.ops.activations import IDENTITY, RELU, Activation
from composer_attn.ops.backends import activated_reference
from composer_attn.ops.backends.table import find_activated, find_passes
from composer_attn.ops.excitations import Described
from composer_attn.ops.manual_gradients import Excitation, Norm
from composer_attn.ops.recorded import PlainArithmetic, Recorded, differentiable_once
from composer_attn.ops.stages import excitation_by_hand

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention

Make = Callable[[], Tensor]


@dataclass(frozen=True)
class PendingRegion:
    """A feature map, and the operations called on it so far.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        backend: name of the backend.
        stages: the operations called so far.
        of_norm: moments, scale and shift ``(N, C)``; mean and inverse standard deviation ``(C,)``.
        parameters: weight and bias of the norm, then those of the attention's layers.
        s: the scales ``(N, C)`` of the attention; ``None`` if none was called.
        of_attention: the averages, and what the layers save for the gradient.
        kept_of_norm: of the numbers of the norm, what the gradient needs.
    """

    x: Tensor
    backend: str
    stages: Stages
    of_norm: tuple[Any, ...]
    parameters: tuple[Tensor | None, ...]
    s: Tensor | None = None
    of_attention: tuple[Tensor | None, Tensor | None] = (None, None)
    kept_of_norm: tuple[Any, ...] = ()

    @property
    def is_normalized(self) -> bool:
        """Whether it is the output of a norm, with nothing else applied."""
        return self.s is None and self.stages.activation == IDENTITY

    @property
    def can_be_added_to(self) -> bool:
        """Whether an addition can be fused."""
        return self.s is not None or self.is_normalized

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output after the optional addition and ReLU, without gradients."""
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
        """Return the output after addition and ReLU, or the tensor from ``make()`` in its place."""
        if relu and shortcut is None and self.is_normalized:
            return self.activated(RELU).result(make=make)
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        function = Summed if self.is_normalized else Finished
        return function.apply(Given(self, relu, make), self.x, shortcut, *self.parameters)

    def become(self, y: Tensor) -> None:
        """Make ``y``, which represented an earlier stage, represent this in the autograd graph."""
        FinishedInPlace.apply(Given(self, False, lambda: y), self.x, None, *self.parameters, y)

    def activated(self, activation: Activation) -> "PendingRegion":
        """Return the stage of an activation called on the output of a norm."""
        found, of = find_activated(self.backend, self.x, activation), self.stages
        stages = Stages(of.passes, found, activation, of.norm, of.excitation)
        return PendingRegion(
            *(self.x, self.backend, stages, self.of_norm, self.parameters, self.s),
            *(self.of_attention, self.kept_of_norm),
        )

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation; with a shortcut, of a ReLU after the addition."""
        if shortcut is not None:
            return self.result(True, shortcut)
        return self.activated(activation).result()

    def attended(
        self, excitation: Excitation, parameters: tuple[Tensor | None, ...]
    ) -> "PendingRegion":
        """Return the stage of an attention, given as layers with gate, and their parameters."""
        if self.stages.activation == IDENTITY:
            return self.activated(IDENTITY)._attended(excitation, parameters)
        return self._attended(excitation, parameters)

    def _attended(
        self, excitation: Excitation, parameters: tuple[Tensor | None, ...]
    ) -> "PendingRegion":
        of = self.stages
        stages = Stages(of.passes, of.activated, of.activation, of.norm, excitation)
        with PlainArithmetic(self.x):
            s, m, hidden = excited(stages, self.x, self.parameters[1], self.of_norm, parameters)
        given = (*self.parameters, *parameters)
        return PendingRegion(
            *(self.x, self.backend, stages, self.of_norm, given, s, (m, hidden)),
            self.kept_of_norm,
        )

    def kept(self) -> tuple[Tensor | None, ...]:
        """Return what the gradient needs besides the map and the parameters, as few as possible."""
        return *self.kept_of_norm, self.s, *self.of_attention


class Given(NamedTuple):
    """The non-tensor arguments of an autograd function."""

    pending: Any  # a PendingRegion, or its counterpart in region_sites
    relu: bool
    make: Make | None

    def output(self, shortcut: Tensor | None) -> Tensor:
        """Compute the output, or create the tensor that represents it."""
        return self.pending.values(self.relu, shortcut) if self.make is None else self.make()


class Finished(Recorded):
    """A region with a manual gradient, whose forward was partly computed before."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: Tensor | None, *parameters) -> Tensor:
        """Compute the output, or create the tensor that represents it."""
        y, pending = given.output(shortcut), given.pending
        ctx.stages, ctx.joined, ctx.parameters = (
            pending.stages,
            shortcut is not None,
            len(parameters),
        )
        ctx.masked, mask = given.relu, y if given.relu else None
        ctx.save_for_backward(mask, x, *parameters, *pending.kept())
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Apply the mask of the ReLU, if any, then differentiate the region."""
        mask, *saved = ctx.saved_tensors
        if mask is not None:
            dy = torch.where(mask <= 0, 0, dy)
        return gradients(ctx, saved, dy)


class FinishedInPlace(Recorded):
    """:class:`Finished`, applied in place to the tensor that represented the previous stage."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: None, *rest) -> Tensor:
        """Return the last argument, which represents the output from now on."""
        *parameters, y = rest
        ctx.mark_dirty(y)
        return Finished.forward(ctx, given, x, shortcut, *parameters)

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Differentiate the region; the previous history of the tensor receives no gradient."""
        return *Finished.backward(ctx, dy), None


class Summed(Recorded):
    """A norm and an optional addition, with a manual gradient."""

    @staticmethod
    def forward(ctx, given: Given, x: Tensor, shortcut: Tensor | None, weight, bias) -> Tensor:
        """Compute the output, or create the tensor that represents it."""
        y, pending = given.output(shortcut), given.pending
        ctx.stages = pending.stages
        mean, variance, scale, _, mu, inverse, *_ = pending.kept()
        mask = y if given.relu else None
        ctx.save_for_backward(x, weight, bias, mask, mean, variance, scale, mu, inverse)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor):
        """Differentiate the sum; without an addition there is no gradient of the shortcut."""
        _, dx, d_shortcut, *of_norm = gradients_of_sum(ctx, ctx.saved_tensors, dy)
        return None, dx, d_shortcut if ctx.needs_input_grad[2] else None, *of_norm


def begin(
    x: Tensor, of_norm: Norm, weight: Tensor | None, bias: Tensor | None, backend: str
) -> PendingRegion:
    """Compute a norm up to writing its output.

    Args:
        x: feature map ``(N, C, *spatial)`` that the norm supports.
        of_norm: the norm's settings.
        weight: its weight.
        bias: its bias.
        backend: name of the backend.
    """
    # The backend's activation passes are looked up, and built, when an activation is called.
    passes = find_passes(backend, x)
    stages = Stages(passes, activated_reference, IDENTITY, of_norm, None)
    with PlainArithmetic(x):
        found = normalized(stages, x, weight, bias)
    kept = _kept(of_norm, found) if torch.is_grad_enabled() else found
    return PendingRegion(x, backend, stages, found, (weight, bias), kept_of_norm=kept)


def activate(x: Tensor, activation: Activation, backend: str) -> PendingRegion:
    """Begin a region with an activation, of a map that no norm precedes.

    Args:
        x: feature map ``(N, C, *spatial)``.
        activation: the activation.
        backend: name of the backend.
    """
    found = (find_passes(backend, x), find_activated(backend, x, activation))
    stages = Stages(*found, activation, None, None)
    with PlainArithmetic(x):
        numbers = normalized(stages, x, None, None)
    return PendingRegion(x, backend, stages, numbers, (None, None), kept_of_norm=numbers)


def _kept(of_norm: Norm, found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what the gradient needs of a norm's numbers, as few as possible."""
    _, _, scale, shift, mu, inverse = found
    if of_norm.per_channel:
        scale, shift = scale[:1].clone(), shift[:1].clone()
    # The gradient's sums can be centred on the mean of all values that are normalized together,
    # too: the per-sample means then contribute nothing, to their sum of squares or here.
    return mu, None, scale, shift, mu, inverse


def excitation_of(
    attention: "ChannelAttention | Described",
) -> tuple[Excitation, tuple[Tensor | None, ...]] | None:
    """Return layers with gate, and parameters, if the attention has a manual gradient."""
    if isinstance(attention, Described):
        return attention.excitation, attention.parameters
    dtypes = {each.dtype for each in attention.parameters()}
    found = attention.by_hand(dtypes.pop()) if len(dtypes) == 1 else None
    if found is None:
        return None
    return excitation_by_hand(attention, found[0]), found[1]
