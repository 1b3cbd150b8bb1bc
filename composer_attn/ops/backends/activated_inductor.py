"""The passes with an activation, each compiled on its own by ``torch.compile``."""

from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import activated_reference as activated
from composer_attn.ops.backends.inductor import run

__all__ = [
    "activate",
    "activated_gradient",
    "activated_means",
    "activated_sums",
    "load",
]


def load(activation: str) -> None:
    """Do nothing: the first call compiles, once the layout is known."""


def activated_means(x: Tensor, scale: Tensor, shift: Tensor, activation: Activation) -> Tensor:
    """Average ``phi(z)`` (:func:`.activated_reference.activated_means`)."""
    return run(activated.activated_means, x, scale, shift, activation)


def activate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    s: Tensor,
    shortcut: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Compute ``s phi(z) [+ shortcut]`` (:func:`.activated_reference.activate`)."""
    return run(activated.activate, x, scale, shift, s, shortcut, activation).view_as(x)


def activated_sums(
    dy: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: Activation,
    attended: bool,
) -> tuple[Tensor, ...]:
    """Sum a gradient over space (:func:`.activated_reference.activated_sums`)."""
    return run(activated.activated_sums, dy, x, centre, scale, shift, activation, attended)


def activated_gradient(
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
    """Write the gradient of ``x`` (:func:`.activated_reference.activated_gradient`)."""
    numbers = (scale, shift, factor, offset, mean, d_mean, d_variance)
    return run(activated.activated_gradient, dy, x, *numbers, activation).view_as(x)
