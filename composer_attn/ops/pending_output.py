"""The output of a convolution whose activation has not been called yet."""

from typing import Any

import torch
from torch import Tensor

from composer_attn.ops import pending_region
from composer_attn.ops.activations import Activation
from composer_attn.ops.pending_region import Make, PendingRegion
from composer_attn.ops.recorded import Recorded


class PendingOutput:
    """A feature map that no norm follows: the stage before an activation and an attention.

    Its methods have the arguments of the other stages', but nothing is ever added to it
    (``can_be_added_to``), and an activation of it is :meth:`activated`.

    Attributes:
        x: the map ``(N, C, *spatial)``, which nothing else refers to.
        backend: name of the backend that computes what follows.
    """

    __slots__ = ("backend", "x")

    # As on a norm's output, an activation can be called on it.
    is_normalized = True
    can_be_added_to = False

    def __init__(self, x: Tensor, backend: str):
        self.x, self.backend = x, backend

    def values(self, relu: bool = False, shortcut: Tensor | None = None) -> Tensor:
        """Return a copy, which may be changed in place while others still compute from the map."""
        return self.x.detach().clone()

    def result(
        self, relu: bool = False, shortcut: Tensor | None = None, make: Make | None = None
    ) -> Tensor:
        """Return the map, or the tensor from ``make()`` in its place."""
        if make is None:
            return self.x
        return Passed.apply(make, self.x) if torch.is_grad_enabled() else make()

    def activated(self, activation: Activation) -> PendingRegion:
        """Return the stage of an activation called on it."""
        return pending_region.activate(self.x, activation, self.backend)

    def ended_in(self, activation: Activation, shortcut: Tensor | None) -> Tensor:
        """Return the output of an activation."""
        return self.activated(activation).result()


class Passed(Recorded):
    """Autograd node of a tensor that represents another one."""

    @staticmethod
    def forward(ctx: Any, make: Make, x: Tensor) -> Tensor:
        """Create the tensor."""
        return make()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[None, Tensor]:
        """Pass the gradient on unchanged."""
        return None, d
