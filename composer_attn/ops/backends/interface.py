"""The interface of a backend: the functions of two modules, and a line in :mod:`.table`.

The functions of the same name in :mod:`.reference` and :mod:`.activated_reference` are documented
there, and define the correct results in the tests. Shapes: ``x`` and ``dy`` are
``(N, C, *spatial)``; all other tensors are ``(N, C)`` or ``(C,)``.
"""

from typing import Protocol

from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.normalization import Running

# Mask of a ReLU: its output, or the scale and shift that its input is computed from.
Mask = tuple[Tensor, Tensor] | Tensor | None


class Passes(Protocol):
    """The four passes over a feature map, and the arithmetic between them on ``(N, C)`` tensors."""

    def load(self) -> object:
        """Build or import what the functions need; raise an exception if that fails."""
        ...

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance over space."""
        ...

    def affine(
        self, x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool
    ) -> Tensor:
        """Compute ``scale x + shift [+ shortcut]``, optionally followed by a ReLU."""
        ...

    def gradient_sums(
        self, dy: Tensor, x: Tensor, centre: Tensor, mask: Mask
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum ``dy`` and ``dy (x - centre)`` over space; also return the masked ``dy``."""
        ...

    def input_gradient(
        self,
        dy: Tensor,
        x: Tensor,
        slope: Tensor,
        mean: Tensor,
        d_mean: Tensor,
        d_variance: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        """Compute the gradient of ``x``."""
        ...

    def normalization(
        self,
        s: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        running: Running | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute scale, shift, mean and inverse standard deviation of a batch norm of ``s x``."""
        ...

    def normalization_gradient(
        self,
        d_scale: Tensor,
        d_shift: Tensor,
        s: Tensor,
        mean: Tensor,
        variance: Tensor,
        mu: Tensor,
        inverse: Tensor,
        weight: Tensor | None,
        fixed: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute the gradients of ``s``, ``mean``, ``variance``, ``weight`` and the bias."""
        ...

    def convolve(self, means: Tensor, kernel: Tensor) -> Tensor:
        """Convolve along the channels, zero-padded at both ends."""
        ...

    def convolve_gradient(
        self, d_logits: Tensor, means: Tensor, kernel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of ``means`` and ``kernel``."""
        ...


class ActivatedPasses(Protocol):
    """The passes over a feature map with an activation."""

    def load(self, activation: str) -> object:
        """Build or import what the functions need for the activation of this name."""
        ...

    def activated_means(
        self, x: Tensor, scale: Tensor, shift: Tensor, activation: Activation
    ) -> Tensor:
        """Average ``phi(z)`` over space, at ``z = scale x + shift``."""
        ...

    def activate(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        s: Tensor,
        shortcut: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        """Compute ``s phi(z) [+ shortcut]``."""
        ...

    def activated_sums(
        self,
        dy: Tensor,
        x: Tensor,
        centre: Tensor,
        scale: Tensor,
        shift: Tensor,
        activation: Activation,
        attended: bool,
    ) -> tuple[Tensor, ...]:
        """Sum a gradient over space: two sums, or five if attention follows."""
        ...

    def activated_gradient(
        self,
        dy: Tensor,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        factor: Tensor,
        offset: Tensor,
        mean: Tensor,
        d_mean: Tensor,
        d_variance: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        """Compute the gradient of ``x``."""
        ...
