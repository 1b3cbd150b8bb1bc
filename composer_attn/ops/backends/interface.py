"""The interface of a backend: the functions of two modules, and a line in :mod:`.table`.

The functions of the same name in :mod:`.reference` and :mod:`.activated_reference` are documented
there, and define the correct results in the tests. Shapes: ``x`` and ``dy`` are
``(N, C, *spatial)``; all other tensors are ``(N, C)`` or ``(C,)``.
"""

from collections.abc import Mapping
from typing import Any, Protocol

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


class SiteCalls(Protocol):
    """Attention and batch norm in few calls, on numbers that stay in one workspace.

    A site, of any type, has ``views(work)``: views of a workspace, which are mean, variance,
    scales, scale and shift ``(N, C)``; mean and inverse deviation of the norm ``(C,)``; and what
    the layers keep for the gradient. Except in ``excite``, the map may be in any layout: hooks on
    saved tensors may have changed it.

    Attributes:
        GATES: the numbers of gates, by start and name.
    """

    @property
    def GATES(self) -> Mapping[tuple[str, str], int]:  # noqa: N802  # a constant of a module
        """The numbers of gates."""
        ...

    def load(self) -> object:
        """Build or import what the functions need; raise an exception if that fails."""
        ...

    def is_available(self) -> bool:
        """Return whether the calls can be used."""
        ...

    def prepare_layers(
        self, is_kernel: bool, gate: int, parameters: tuple[Tensor | None, ...]
    ) -> Any:
        """Prepare layers and gate of an attention, for any number of calls."""
        ...

    def excite(self, x: Tensor, last: bool, layers: Any) -> tuple[Any, Tensor]:
        """Compute moments and scales of a feature map; return site and workspace."""
        ...

    def prepare_norm(
        self,
        work: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        running: Running | None,
    ) -> Any:
        """Prepare a batch norm, for calls on workspaces like this one; ``None`` if it cannot be."""
        ...

    def normalize(self, site: Any, work: Tensor, norm: Any, number: int) -> None:
        """Normalize the scaled map, up to scale and shift, with a number of values per channel."""
        ...

    def write(
        self, site: Any, work: Tensor, x: Tensor, shortcut: Tensor | None, relu: bool
    ) -> Tensor:
        """Write the normalized map, after an addition and a ReLU."""
        ...

    def gradient(
        self,
        site: Any,
        work: Tensor,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        relu: bool,
        fixed: bool,
        weight: Tensor | None,
        parameters: tuple[Tensor | None, ...],
        needs_dx: bool,
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor | None, ...]]:
        """Return the gradients of ``x``, of the sum before the ReLU, and of all parameters."""
        ...
