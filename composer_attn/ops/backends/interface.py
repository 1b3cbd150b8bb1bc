"""What a backend has to have: the functions of two modules, and a line in :mod:`.table`.

Each computes what the function of that name in :mod:`.reference` or :mod:`.activated_reference`
does, whose docstrings say what that is, and to whose results the tests hold all others. Letters as
there: ``x (N, C, *spatial)``; ``(N, C)`` or ``(C,)`` for what is called neither ``x`` nor ``dy``.
"""

from typing import Protocol

from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.normalization import Running

# Where a ReLU's output is not 0: that output, or the scale and shift it was computed from.
Mask = tuple[Tensor, Tensor] | Tensor | None


class Passes(Protocol):
    """The four passes over a feature map, and the arithmetic between them on ``(N, C)`` tensors."""

    def load(self) -> object:
        """Build or import what the functions need; raise whatever stands in the way."""
        ...

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute mean and variance over space."""
        ...

    def affine(
        self, x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool
    ) -> Tensor:
        """Compute ``scale x + shift [+ shortcut]``, through a ReLU or not."""
        ...

    def gradient_sums(
        self, dy: Tensor, x: Tensor, centre: Tensor, mask: Mask
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum ``dy`` and ``dy (x - centre)`` over space; return the masked ``dy`` as well."""
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
        """Compute scale and shift of a batch norm of ``s x``, its mean and inverse deviation."""
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
        """Convolve along the channels, zeros beyond both ends."""
        ...

    def convolve_gradient(
        self, d_logits: Tensor, means: Tensor, kernel: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of ``means`` and ``kernel``."""
        ...


class ActivatedPasses(Protocol):
    """The passes over a feature map that an activation takes part in."""

    def load(self, activation: str) -> object:
        """Build or import what the functions need for an activation of that name."""
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
        """Sum a gradient over space: two sums, or five where attention follows."""
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
