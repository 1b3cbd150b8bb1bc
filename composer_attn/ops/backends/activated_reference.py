"""The passes over a feature map with an activation, in plain torch.

Notation as in :mod:`.reference`: ``x (N, C, *spatial)``, ``L`` positions, and
``(N, C)`` tensors in the dtype of the statistics. ``phi`` is the activation, ``phi'`` its
derivative, both at ``z = scale x + shift``, the output of a norm, which every pass recomputes and
none saves. Every other backend has the same four functions, and is tested against these.
"""

import torch
from torch import Tensor

from composer_attn.ops.activations import Activation, phi, slope
from composer_attn.ops.backends.reference import spread, statistics_gradient


def activated_means(x: Tensor, scale: Tensor, shift: Tensor, activation: Activation) -> Tensor:
    """Compute ``mean(phi(z))`` over space, ``(N, C)``."""
    return phi(_z(x, scale, shift), activation).mean(_space(x))


def activate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    s: Tensor,
    shortcut: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Compute ``y = s phi(z) [+ shortcut]``."""
    y = phi(_z(x, scale, shift), activation) * spread(s, x)
    return (y if shortcut is None else y + shortcut).to(x.dtype)


def activated_sums(
    dy: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: Activation,
    attended: bool,
) -> tuple[Tensor, ...]:
    """Sum a gradient over space.

    Args:
        dy: gradient of the output.
        x: the feature map.
        centre: ``(N, C)``, close to the means of ``x``.
        scale: scale of ``z``, ``(N, C)``.
        shift: shift of ``z``, ``(N, C)``.
        activation: the activation.
        attended: whether an attention follows, which needs the last three sums.

    Returns:
        ``sum(dy phi')`` and ``sum(dy phi' (x - centre))``; and if ``attended`` ``sum(dy phi)``,
        ``sum(phi')`` and ``sum(phi' (x - centre))``.
    """
    space, z = _space(x), _z(x, scale, shift)
    wide, d = dy.to(centre.dtype), slope(z, activation)
    deviation, g = x.to(centre.dtype) - spread(centre, x), wide * d
    terms = [g, g * deviation]
    if attended:
        terms += [wide * phi(z, activation), d, d * deviation]
    return tuple(term.sum(space) for term in terms)


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
    """Compute ``dx = (factor dy + offset) phi' + d_mean / L + 2 d_variance (x - mean) / L``.

    ``d_mean`` and ``d_variance`` are the gradients of the moments of ``x``; ``d_variance`` is
    ``None`` if nothing depends on the variance.
    """
    rest = statistics_gradient(x, mean, d_mean, d_variance)
    g = torch.addcmul(spread(offset, x), dy.to(factor.dtype), spread(factor, x))
    return torch.addcmul(rest, g, slope(_z(x, scale, shift), activation)).to(x.dtype)


def load(activation: str) -> None:
    """Do nothing: there is nothing to build."""


def _z(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(spread(shift, x), x.to(scale.dtype), spread(scale, x))


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))
