"""Attention and batch norm begun, each at its call, and finished once it is known what follows.

Between them only numbers ``(N, C)`` pass: :class:`Excited` is a feature map with the excitation
that is to scale it, :class:`Normalized` one with the scale and shift of what a norm puts out. Both
know what autograd must know to write the map itself later, and any number of times. Whatever else
a call does (moving running statistics, drawing random numbers, showing scales to an observer) has
been done when one of them is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.ops import autograd_path
from composer_attn.ops.activation_passes import Ending
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.backends.table import find_passes
from composer_attn.ops.fused_functions import (
    Affine,
    Moments,
    Region,
    Scaled,
    Shifted,
    Whole,
    in_full_precision,
)
from composer_attn.ops.manual_gradients import AttentionFirst, Excitation, Norm, NormFirst, Order
from composer_attn.ops.module_calls import Called

if TYPE_CHECKING:  # which imports this package
    from composer_attn.attention.base import ChannelAttention

Make = Callable[[], Tensor]


@dataclass
class Excited:
    """A feature map, and the excitation that is to scale it.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        passes: the backend's.
        mean: of ``x`` over space, ``(N, C)``.
        variance: likewise.
        s: the excitation ``(N, C)``; differentiable by autograd where ``way`` is there.
        excitation: what computed it, where that is differentiated by hand.
        parameters: of its layers, likewise.
        hidden: what the layers keep, likewise.
        way: of :class:`~composer_attn.ops.fused_functions.Moments`, where autograd differentiates.
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

    def values(self) -> Tensor:
        """Compute the attended map, without gradients."""
        with torch.no_grad():
            s = self.s.contiguous()
            return self.passes.affine(self.x, s, torch.zeros_like(s), None, False)

    def result(self, make: Make | None = None) -> Tensor:
        """Return the attended map; ``make()`` may stand for it, which is differentiable alike."""
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

    def normalized(self, norm: _BatchNorm) -> "Normalized":
        """Normalize it: the call of a batch norm, of which nothing but the map is left to write."""
        x, mean, variance = self.x, self.mean, self.variance
        count = x.shape[2:].numel()
        if self.excitation is None:
            centre = autograd_path.finite(mean)
            found = autograd_path.norm_of_scaled(self.s, mean, variance, centre, count, norm)
            return Normalized(x, self.passes, centre, *found, way=self.way, region=self.region)
        with in_full_precision(x), torch.no_grad():
            of_norm = Norm(
                norm.eps, autograd_path.running_statistics(norm, x.numel() // x.shape[1])
            )
            scale, shift, kept = AttentionFirst.normalized(
                self.passes, mean, variance, self.s, self.hidden, norm.weight, norm.bias, of_norm
            )
        by_hand = _ByHand(AttentionFirst, of_norm.fixed, self.excitation, kept)
        parameters = (norm.weight, norm.bias, *self.parameters)
        return Normalized(x, self.passes, mean, scale, shift, by_hand, parameters)


@dataclass
class _ByHand:
    """What a gradient by hand needs besides tensors that autograd keeps."""

    order: type[Order]
    fixed: bool
    excitation: Excitation
    kept: tuple[Tensor | None, ...]


@dataclass
class Normalized:
    """A feature map, and the scale and shift by which it becomes the output of a norm.

    Attributes:
        x: the map ``(N, C, *spatial)``.
        passes: the backend's.
        centre: near the mean of ``x``, ``(N, C)``.
        scale: ``(N, C)``.
        shift: by hand, what is added to ``scale x``; else, to ``scale (x - centre)``.
        by_hand: what computed both, where that is differentiated by hand.
        parameters: weight and bias of the norm, then those of the layers, likewise.
        way: as in :class:`Excited`.
    """

    x: Tensor
    passes: Any  # a backend, or what ends it in an activation
    centre: Tensor
    scale: Tensor
    shift: Tensor
    by_hand: _ByHand | None = None
    parameters: tuple[Tensor | None, ...] = ()
    way: Tensor | None = None
    region: Region | None = None

    def end_in(self, passes: Ending) -> None:
        """Let an activation take the place of the ReLU that may follow, without an addition."""
        self.passes = passes
        if self.region is not None:
            self.region.passes = passes

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output, without gradients."""
        with torch.no_grad():
            scale = self.scale.contiguous()
            return self.passes.affine(self.x, scale, self.origin(), shortcut, relu)

    def origin(self) -> Tensor:
        """Return what is added to ``scale x``, detached."""
        if self.by_hand is not None:
            return self.shift
        return torch.addcmul(self.shift, self.scale, self.centre, value=-1).detach().contiguous()

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the output, after an addition and a ReLU; ``make()`` may stand for it."""
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        if self.by_hand is not None:
            arguments = (self.x, shortcut, *self.parameters)
            return Whole.apply(self, relu, make, *arguments)
        if make is None and self.way is not None and self.region is not None:
            # One use only: what way it takes back to the map depends on the ReLU.
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
    """Begin an attention over averages: all of its call but the scaling.

    Args:
        x: feature map ``(N, C, *spatial)``.
        attention: a :class:`composer_attn.attention.ChannelAttention` over ``C`` channels.
        backend: who runs the passes.
        called: whether to call the layers, for someone to look at.
    """
    found = find_passes(backend, x)
    by_hand = attention.by_hand(passes.statistics_dtype(x))
    if by_hand is None:
        region = Region(found, relu=False)
        mean, variance, way = Moments.apply(x, region)
        s = autograd_path.attention_alone(mean, attention)
        return Excited(x, found, mean, variance, s, way=way, region=region)
    excitation, parameters = _excitation(attention, called, *by_hand)
    with in_full_precision(x), torch.no_grad():
        mean, variance = found.moments(x)
        s, hidden = AttentionFirst.excited(found, mean, excitation, parameters)
    return Excited(x, found, mean, variance, s, excitation, parameters, hidden)


def normalize(
    x: Tensor,
    attention: "ChannelAttention",
    norm: _BatchNorm,
    backend: str,
    called: bool = False,
) -> Normalized:
    """Begin a norm that is attended itself: both calls, but for the map to write.

    Arguments are those of :func:`excite`, with the batch norm ``norm``.
    """
    found = find_passes(backend, x)
    by_hand = attention.by_hand(passes.statistics_dtype(x))
    if by_hand is None:
        region = Region(found, relu=False)
        mean, variance, way = Moments.apply(x, region)
        centre, count = autograd_path.finite(mean), x.shape[2:].numel()
        scale, shift = autograd_path.norm_then_attention(
            mean, variance, centre, count, attention, norm
        )
        return Normalized(x, found, centre, scale, shift, way=way, region=region)
    excitation, parameters = _excitation(attention, called, *by_hand)
    with in_full_precision(x), torch.no_grad():
        mean, variance = found.moments(x)
        of_norm = Norm(norm.eps, autograd_path.running_statistics(norm, x.numel() // x.shape[1]))
        scale, shift, kept = NormFirst.forward(
            found, mean, variance, norm.weight, norm.bias, of_norm, excitation, parameters
        )
    hand = _ByHand(NormFirst, of_norm.fixed, excitation, kept)
    return Normalized(x, found, mean, scale, shift, hand, (norm.weight, norm.bias, *parameters))


def _excitation(attention: "ChannelAttention", called: bool, layers: Any, parameters: tuple):
    layers = Called(attention, layers) if called else layers
    gate = (attention.gated, attention.gate_slope, attention.gate_clips)
    return Excitation(layers, *gate), parameters
