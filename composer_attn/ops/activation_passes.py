"""Passes whose ReLU is replaced by another activation.

The autograd functions (:mod:`composer_attn.ops.fused_functions`) call passes with a flag for a
final ReLU. :class:`PassesWithActivation` has the interface of such passes, and applies the
activation instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import activated_reference as plain_activated
from composer_attn.ops.backends import reference as plain_passes
from composer_attn.ops.backends.interface import ActivatedPasses, Passes


@dataclass(frozen=True)
class PassesWithActivation:
    """The passes of a backend with a final activation, without an addition before it.

    Attributes:
        passes: the passes of the backend.
        activated: its passes with an activation.
        activation: the activation.
    """

    passes: Passes
    activated: ActivatedPasses
    activation: Activation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.passes, name)

    @property
    def in_plain_torch(self) -> "PassesWithActivation":
        """The same passes in plain torch."""
        return PassesWithActivation(plain_passes, plain_activated, self.activation)

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, shortcut: None, relu: bool) -> Tensor:
        """Compute ``phi(scale x + shift)``."""
        return self.activated.activate(
            x, scale, shift, torch.ones_like(scale), shortcut, self.activation
        )

    def gradient_sums(
        self, dy: Tensor, x: Tensor, centre: Tensor, mask: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum ``dy phi'`` and ``dy phi' (x - centre)`` over space; ``mask`` is scale and shift."""
        first, second = self.activated.activated_sums(dy, x, centre, *mask, self.activation, False)
        return first, second, dy

    def input_gradient(
        self,
        dy: Tensor,
        x: Tensor,
        slope: Tensor,
        mean: Tensor,
        d_mean: Tensor,
        d_variance: Tensor | None,
        shift: Tensor,
    ) -> Tensor:
        """Compute ``slope phi' dy + d_mean / L + 2 d_variance (x - mean) / L``."""
        factors = (slope, shift, slope, torch.zeros_like(slope), mean, d_mean, d_variance)
        return self.activated.activated_gradient(dy, x, *factors, self.activation)
