"""Attention and batch norm computed up to ``(N, C)`` tensors, and completed by what follows them.

Only ``(N, C)`` tensors pass from one call to the next: :class:`Excited` is a feature map with the
excitation that will scale it, :class:`Normalized` one with the scale and shift of a norm's output.
Both hold what autograd needs, so that the map itself can be written later, and any number of times.
All other effects of the calls (updating running statistics, drawing random numbers, showing scales
to an observer) have taken place when one of them is created.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from composer_attn.ops import autograd_path
from composer_attn.ops.activation_passes import PassesWithActivation
from composer_attn.ops.activations import RELU, Activation
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.backends.table import find_activated, find_passes
from composer_attn.ops.fused_functions import (
    Affine,
    AttendThenNormalize,
    Moments,
    Region,
    Scaled,
    Shifted,
)
from composer_attn.ops.manual_gradients import AttentionFirst, Excitation, Norm, NormFirst, Order
from composer_attn.ops.module_calls import Called
from composer_attn.ops.norm_kinds import settings
from composer_attn.ops.recalled import holds_weights
from composer_attn.ops.recorded import PlainArithmetic

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention

Make = Callable[[], Tensor]


@dataclass(slots=True)
class Excited:
    """A feature map, and the excitation that will scale it.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        passes: the backend's passes.
        mean: mean of ``x`` over space, ``(N, C)``.
        variance: variance of ``x`` over space, ``(N, C)``.
        s: the excitation ``(N, C)``; differentiable by autograd if ``way`` is given.
        excitation: the layers and gate that computed it, if they have a manual gradient.
        parameters: parameters of the layers, for the manual gradient.
        hidden: what the layers save for the manual gradient.
        way: as in :class:`~composer_attn.ops.fused_functions.Moments`; None with a manual gradient.
        region: the state shared with ``Moments``; None with a manual gradient.
        backend: name of the backend.
    """

    x: Tensor
    passes: Passes
    mean: Tensor
    variance: Tensor
    s: Tensor
    excitation: Excitation | None = None
    parameters: tuple[Tensor | None, ...] = ()
    hidden: Tensor | None = None
    way: Tensor | None = None
    region: Region | None = None
    backend: str = "reference"

    def values(self) -> Tensor:
        """Compute the attended map, without gradients."""
        with torch.no_grad():
            s = self.s.contiguous()
            return self.passes.affine(self.x, s, torch.zeros_like(s), None, False)

    def result(self, make: Make | None = None) -> Tensor:
        """Return the attended map, or the tensor from ``make()`` in its place, differentiable."""
        if not torch.is_grad_enabled():
            return self.values() if make is None else make()
        if make is None and self.way is not None:
            return self._by_the_way()
        make = self.values if make is None else make
        if self.excitation is None:
            return Shifted.apply(make, self.passes, self.x, self.s, None, None)
        kept = (self.mean, self.s, self.hidden)
        return Scaled.apply(make, self.passes, self.excitation, kept, self.x, *self.parameters)

    def _by_the_way(self) -> Tensor:
        way, self.way = self.way, None
        zero = torch.zeros_like(self.mean)
        return Affine.apply(self.s, zero, None, self.x.detach(), zero, way, self.region)

    def normalized(self, norm: nn.Module) -> "Normalized":
        """Return the stage of a batch norm called on it, up to writing the output."""
        x, mean, variance = self.x, self.mean, self.variance
        if self.excitation is None:
            centre = autograd_path.finite(mean)
            found = autograd_path.norm_of_scaled(self.s, mean, variance, centre, x.shape, norm)
            return Normalized(
                *(x, self.passes, centre, *found),
                way=self.way, region=self.region, backend=self.backend,
            )  # fmt: skip
        return self.normalized_by(*settings(norm, x.shape))

    def normalized_by(
        self, of_norm: Norm, weight: Tensor | None, bias: Tensor | None
    ) -> "Normalized":
        """Do so, given a manual gradient, and the norm's settings and parameters."""
        x, mean, variance = self.x, self.mean, self.variance
        with PlainArithmetic(x):
            scale, shift, kept = AttentionFirst.normalized(
                self.passes, mean, variance, self.s, self.hidden, weight, bias, of_norm
            )
        excitation = cast(Excitation, self.excitation)  # there is a manual gradient
        by_hand = ByHand(AttentionFirst, of_norm, excitation, kept)
        parameters = (weight, bias, *self.parameters)
        of_map = (x, self.passes, mean, scale, shift)
        return Normalized(*of_map, by_hand, parameters, backend=self.backend)


@dataclass(slots=True)
class ByHand:
    """What a manual gradient needs in addition to the saved tensors."""

    order: type[Order]
    norm: Norm
    excitation: Excitation
    kept: tuple[Tensor | None, ...]


@dataclass(slots=True)
class Normalized:
    """A feature map, and the scale and shift that turn it into the output of a norm.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        passes: the backend's passes.
        centre: close to the mean of ``x``, ``(N, C)``.
        scale: scale of the output, ``(N, C)``.
        shift: with a manual gradient, added to ``scale x``; otherwise, to ``scale (x - centre)``.
        by_hand: what the manual gradient needs; None if autograd differentiates.
        parameters: weight and bias of the norm, then those of the layers, for the manual gradient.
        way: as in :class:`Excited`.
        region: as in :class:`Excited`.
        backend: name of the backend.
    """

    x: Tensor
    passes: Any  # a backend's, or a PassesWithActivation
    centre: Tensor
    scale: Tensor
    shift: Tensor
    by_hand: ByHand | None = None
    parameters: tuple[Tensor | None, ...] = ()
    way: Tensor | None = None
    region: Region | None = None
    backend: str = "reference"

    @property
    def is_normalized(self) -> bool:
        """Whether an activation can be fused; always, as none has been applied."""
        return True

    @property
    def can_be_added_to(self) -> bool:
        """Whether an addition can be fused."""
        return True

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation; with a shortcut, of a ReLU after the addition."""
        if activation == RELU:
            return self.result(True, shortcut)
        # A copy, since the norm's own output may still be requested from this one.
        copy, self.way = replace(self), None
        passes = PassesWithActivation(
            self.passes, find_activated(self.backend, self.x, activation), activation
        )
        copy.end_in(passes)
        return copy.result(True)

    def end_in(self, passes: PassesWithActivation) -> None:
        """Replace the final ReLU by another activation, without an addition."""
        self.passes = passes
        if self.region is not None:
            self.region.passes = passes

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output, without gradients."""
        with torch.no_grad():
            scale = self.scale.contiguous()
            return self.passes.affine(self.x, scale, self.origin(), shortcut, relu)

    def origin(self) -> Tensor:
        """Return the term added to ``scale x``, detached."""
        if self.by_hand is not None:
            return self.shift
        return torch.addcmul(self.shift, self.scale, self.centre, value=-1).detach().contiguous()

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the output after addition and ReLU, or the tensor from ``make()`` in its place."""
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        if self.by_hand is not None:
            arguments = (self.x, shortcut, *self.parameters)
            return AttendThenNormalize.apply(self, relu, make, *arguments)
        if make is None and self.way is not None and self.region is not None:
            # Used only once: the gradient that flows along the way depends on the ReLU.
            way, self.way = self.way, None
            self.region.relu = relu
            arguments = (self.scale, self.shift, shortcut, self.x.detach(), self.centre, way)
            return Affine.apply(*arguments, self.region)
        y = Shifted.apply(
            self.values if make is None else make,
            self.passes, self.x, self.scale, self.shift, self.centre,
        )  # fmt: skip
        y = y if shortcut is None else y + shortcut
        return y.relu() if relu else y


def excite(x: Tensor, attention: "ChannelAttention", backend: str, called: bool = False) -> Excited:
    """Compute an attention that squeezes by averaging, up to scaling the feature map.

    Args:
        x: feature map ``(N, C, *spatial)``.
        attention: a :class:`composer_attn.attention.ChannelAttention` over ``C`` channels.
        backend: name of the backend.
        called: whether to call the layers as modules, so that their hooks run.
    """
    found = find_passes(backend, x)
    by_hand = _by_hand(x, attention, called)
    if by_hand is None:
        region = Region(found, relu=False)
        mean, variance, way = Moments.apply(x, region)
        s = autograd_path.attention_alone(mean, attention)
        return Excited(x, found, mean, variance, s, way=way, region=region, backend=backend)
    excitation, parameters = _excitation(attention, called, *by_hand)
    with PlainArithmetic(x):
        mean, variance = found.moments(x)
        s, hidden = AttentionFirst.excited(found, mean, excitation, parameters)
    of_map = (x, found, mean, variance, s)
    return Excited(*of_map, excitation, parameters, hidden, backend=backend)


def normalize(
    x: Tensor,
    attention: "ChannelAttention",
    norm: nn.Module,
    backend: str,
    called: bool = False,
) -> Normalized:
    """Compute an attended norm, both norm and attention, up to writing the output.

    Arguments are those of :func:`excite`, with the batch norm ``norm``.
    """
    found = find_passes(backend, x)
    by_hand = _by_hand(x, attention, called)
    if by_hand is None:
        region = Region(found, relu=False)
        mean, variance, way = Moments.apply(x, region)
        centre = autograd_path.finite(mean)
        scale, shift = autograd_path.norm_then_attention(
            mean, variance, centre, x.shape, attention, norm
        )
        of_map = (x, found, centre, scale, shift)
        return Normalized(*of_map, way=way, region=region, backend=backend)
    excitation, parameters = _excitation(attention, called, *by_hand)
    with PlainArithmetic(x):
        mean, variance = found.moments(x)
        of_norm, weight, bias = settings(norm, x.shape)
        scale, shift, kept = NormFirst.forward(
            found, mean, variance, weight, bias, of_norm, excitation, parameters
        )
    hand = ByHand(NormFirst, of_norm, excitation, kept)
    parameters = (weight, bias, *parameters)
    return Normalized(x, found, mean, scale, shift, hand, parameters, backend=backend)


def _by_hand(x: Tensor, attention: "ChannelAttention", called: bool) -> Any:
    # Weights that hooks compute, as those of pruning do, are differentiated in the layers' calls.
    plain = not called or holds_weights(attention)
    return attention.by_hand(passes.statistics_dtype(x)) if plain else None


def _excitation(attention: "ChannelAttention", called: bool, layers: Any, parameters: tuple):
    layers = Called(attention, layers) if called else layers
    return excitation_by_hand(attention, layers), parameters


def excitation_by_hand(attention: "ChannelAttention", layers: Any) -> Excitation:
    """Return the layers with the gate of an attention that has a manual gradient."""
    gate = (attention.gated, attention.gate_slope, attention.gate_clips)
    return Excitation(layers, *gate, (attention.start, attention.gate), attention.observer)
