"""Norm, activation, attention in few calls: :mod:`.pending_region` for the usual case.

The usual case is a backend with calls for whole stages (:mod:`.backends.region_interface`), batch
norm, and an attention of known layers. Any other continuation is computed from the general stages,
which consist of views of the same numbers.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from composer_attn.ops import pending_region
from composer_attn.ops.activations import IDENTITY, RELU, Activation
from composer_attn.ops.backends import activated_reference
from composer_attn.ops.backends.interface import ActivatedPasses
from composer_attn.ops.backends.region_interface import (
    Parameters,
    RegionCalls,
    RegionLayers,
    RegionNumbers,
)
from composer_attn.ops.backends.table import find_activated, find_region
from composer_attn.ops.manual_gradients import Excitation, Norm
from composer_attn.ops.norm_kinds import settings
from composer_attn.ops.pending_region import Given, Make, PendingRegion
from composer_attn.ops.region_functions import (
    FinishedSite,
    FinishedSiteInPlace,
    SiteParts,
    SummedSite,
    general_kept,
    stages_of,
)
from composer_attn.ops.region_layers import general_numbers, layers_of


class NormSite(NamedTuple):
    """A map, and the numbers of the norm called on it; all stages after it share them."""

    x: Tensor
    backend: str
    calls: RegionCalls
    norm: Norm
    weight: Tensor | None
    bias: Tensor | None
    numbers: RegionNumbers


class AttentionSite(NamedTuple):
    """An attention called on it, its layers as the backend takes them, and its numbers."""

    excitation: Excitation
    parameters: Parameters
    layers: RegionLayers
    numbers: Tensor


class PendingSite:
    """A norm, activation and attention so far, as :class:`~.pending_region.PendingRegion`."""

    __slots__ = ("activated_by", "activation", "attention", "of", "x")

    def __init__(
        self,
        of: NormSite,
        activation: Activation = IDENTITY,
        activated_by: ActivatedPasses = activated_reference,
        attention: AttentionSite | None = None,
    ):
        self.of, self.activation, self.activated_by = of, activation, activated_by
        self.attention, self.x = attention, of.x

    @property
    def s(self) -> Tensor | None:
        """The scales ``(N, C)`` of the attention; ``None`` if none was called."""
        attention = self.attention
        if attention is None:
            return None
        return general_numbers(attention.numbers, attention.excitation, self.x)[0]

    @property
    def is_normalized(self) -> bool:
        """Whether it is the output of a norm, with nothing else applied."""
        return self.attention is None and self.activation == IDENTITY

    @property
    def can_be_added_to(self) -> bool:
        """Whether an addition can be fused."""
        return self.attention is not None or self.activation == IDENTITY

    @property
    def parameters(self) -> Parameters:
        """Weight and bias of the norm, then those of the attention's layers."""
        of_layers = () if self.attention is None else self.attention.parameters
        return self.of.weight, self.of.bias, *of_layers

    @property
    def parts(self) -> "SiteParts":
        """What the general gradient is computed by."""
        excitation = None if self.attention is None else self.attention.excitation
        return SiteParts(
            *(self.of.backend, self.activated_by, self.activation, self.of.norm, excitation)
        )

    def general(self) -> PendingRegion:
        """Return the general stage."""
        of, attention = self.of, self.attention
        mean, variance, _, scale, shift = of.numbers.work.view(5, *self.x.shape[:2])
        numbers = None if attention is None else attention.numbers
        given = (of.numbers.statistics, of.numbers.line, numbers, self.parts.excitation)
        *kept, s, m, hidden = general_kept(*given, self.x)
        _, _, _, _, mu, inverse = kept
        if of.norm.fixed:  # there are no moments
            mean = variance = mu.expand_as(scale).contiguous()
        return PendingRegion(
            *(
                self.x,
                of.backend,
                stages_of(self.parts, self.x),
                (mean, variance, scale, shift, mu, inverse),
            ),
            *(self.parameters, s, (m, hidden), tuple(kept)),
        )

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Compute the output after the optional addition and ReLU, without gradients."""
        of, attention = self.of, self.attention
        if self.activation != IDENTITY:
            numbers = None if attention is None else attention.numbers
            y = of.calls.write(self.x, of.numbers, numbers, shortcut, self.activation)
            return y.relu_() if relu else y
        if attention is not None:
            return self.general().values(relu, shortcut)
        return of.calls.write_sum(self.x, of.numbers, shortcut, relu)

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the output after addition and ReLU, or the tensor from ``make()`` in its place."""
        if relu and shortcut is None and self.is_normalized:
            return self.activated(RELU).result(make=make)
        if not torch.is_grad_enabled():
            return self.values(relu, shortcut) if make is None else make()
        function = SummedSite if self.is_normalized else FinishedSite
        return function.apply(Given(self, relu, make), self.x, shortcut, *self.parameters)

    def become(self, y: Tensor) -> None:
        """Make ``y``, which represented an earlier stage, represent this in the autograd graph."""
        given = Given(self, False, lambda: y)
        FinishedSiteInPlace.apply(given, self.x, None, *self.parameters, y)

    def activated(self, activation: Activation) -> "PendingSite | PendingRegion":
        """Return the stage of an activation called on the output of a norm."""
        found = find_activated(self.of.backend, self.x, activation)
        if found is activated_reference:  # it could not be built
            return self.general().activated(activation)
        return PendingSite(self.of, activation, found)

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation; with a shortcut, of a ReLU after the addition."""
        if shortcut is not None:
            return self.result(True, shortcut)
        return self.activated(activation).result()

    def attended(
        self, excitation: Excitation, parameters: Parameters
    ) -> "PendingSite | PendingRegion":
        """Return the stage of an attention, given as layers with gate, and their parameters."""
        if self.activation == IDENTITY and self.activated_by is activated_reference:
            return self.activated(IDENTITY).attended(excitation, parameters)
        of = self.of
        layers = layers_of(excitation, parameters, self.x.size(1), of.numbers.work)
        if layers is None:
            return self.general().attended(excitation, parameters)
        given = (of.bias, of.norm.fixed, self.activation, layers, parameters)
        numbers = of.calls.attend(self.x, of.numbers, *given)
        attention = AttentionSite(excitation, parameters, layers, numbers)
        found = PendingSite(of, self.activation, self.activated_by, attention)
        if excitation.observer is not None:
            excitation.observer(cast(Tensor, found.s))
        return found


def begin(x: Tensor, norm: nn.Module, backend: str) -> PendingSite | PendingRegion:
    """Compute a norm up to writing its output.

    Args:
        x: feature map ``(N, C, *spatial)`` that the norm supports
            (:func:`composer_attn.ops.fused.fits_norm`).
        norm: the norm, in either mode.
        backend: name of the backend.
    """
    of_norm, weight, bias = settings(norm, x.shape)
    calls = None if of_norm.averaging is not None else find_region(backend, x)
    numbers = None if calls is None else calls.normalize(x, of_norm, weight, bias)
    if calls is None or numbers is None:
        return pending_region.begin(x, of_norm, weight, bias, backend)
    return PendingSite(NormSite(x, backend, calls, of_norm, weight, bias, numbers))
