"""The four passes over a feature map for attention and batch norm, in plain torch.

Notation: ``x (N, C, *spatial)`` is a feature map with ``L`` positions; ``(N, C)`` tensors have one
value per sample and channel, in the dtype of :func:`statistics_dtype`. Every other backend has the
same four functions, and is tested against these.
"""

import torch
from torch import Tensor

from composer_attn.ops.logits import convolve, convolve_gradient
from composer_attn.ops.normalization import normalization, normalization_gradient

__all__ = [
    "affine",
    "convolve",
    "convolve_gradient",
    "gradient_sums",
    "input_gradient",
    "load",
    "moments",
    "normalization",
    "normalization_gradient",
    "spread",
    "statistics_dtype",
    "statistics_gradient",
]

_HALF = (torch.float16, torch.bfloat16)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for statistics of ``x``: its own, or float32 if that has 16 bits."""
    return torch.float32 if x.dtype in _HALF else x.dtype


def load() -> None:
    """Do nothing: there is nothing to build."""


def spread(per_channel: Tensor, x: Tensor) -> Tensor:
    """Return a view of an ``(N, C)`` tensor that broadcasts over the positions of ``x``."""
    return per_channel[(...,) + (None,) * (x.dim() - 2)]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and (biased) variance over space, both ``(N, C)``.

    ``mean = k + sum(x - k) / L`` and ``variance = sum((x - k)^2) / L - (mean - k)^2``, where the
    shift ``k`` is one of the values: ``(mean - k)^2 <= L variance``, so that nothing cancels if the
    mean is large relative to the standard deviation. Welford's recurrence is equally stable, but no
    compiler vectorizes it. If ``k`` is not finite it is replaced by 0, as it would turn an infinite
    mean into NaN.
    """
    space = tuple(range(2, x.dim()))
    x = x.to(statistics_dtype(x))
    shift = x.detach()
    for size in x.shape[2:]:  # slices would limit the number of samples
        shift = shift.select(2, size // 2)
    shift = torch.where(shift.isfinite(), shift, 0)
    shifted = x - spread(shift, x)
    mean = shifted.mean(space)
    return shift + mean, (shifted * shifted).mean(space).sub(mean * mean).clamp_min(0)


def affine(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute ``y = scale x + shift [+ shortcut]``, followed by a ReLU if ``relu``."""
    y = torch.addcmul(spread(shift, x), x.to(scale.dtype), spread(scale, x))
    if shortcut is not None:
        y = y + shortcut
    return (y.relu() if relu else y).to(x.dtype)


def gradient_sums(
    dy: Tensor, x: Tensor, centre: Tensor, mask: tuple[Tensor, Tensor] | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum a gradient over space.

    Args:
        dy: gradient of the output.
        x: the feature map.
        centre: ``(N, C)``, close to the means of ``x``.
        mask: mask of a ReLU: its output, or the scale and shift ``(N, C)`` that its input is
            computed from. ``None`` without ReLU.

    Returns:
        ``sum(g)``, ``sum(g (x - centre))``, and the masked gradient ``g`` if ``mask`` is the
        output, else ``dy`` unchanged.
    """
    space = tuple(range(2, x.dim()))
    g = _masked(dy, x, mask)
    wide = g.to(centre.dtype)
    sums = wide.sum(space), (wide * (x.to(centre.dtype) - spread(centre, x))).sum(space)
    return *sums, g if isinstance(mask, Tensor) else dy


def input_gradient(
    dy: Tensor,
    x: Tensor,
    slope: Tensor,
    mean: Tensor,
    d_mean: Tensor,
    d_variance: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """Compute ``dx = slope g + d_mean / L + 2 d_variance (x - mean) / L``.

    ``d_mean`` and ``d_variance`` are the gradients of the moments; ``d_variance`` is ``None`` if
    nothing depends on the variance. ``g`` is ``dy``, but if ``shift`` is given (that of a ReLU's
    input) 0 where ``slope x + shift <= 0``.
    """
    g = _masked(dy, x, None if shift is None else (slope, shift)).to(slope.dtype)
    rest = statistics_gradient(x, mean, d_mean, d_variance)
    return torch.addcmul(rest, g, spread(slope, x)).to(x.dtype)


def statistics_gradient(
    x: Tensor, mean: Tensor, d_mean: Tensor, d_variance: Tensor | None
) -> Tensor:
    """Compute ``dx = d_mean / L + 2 d_variance (x - mean) / L``, in the dtype of the statistics."""
    positions = x.shape[2:].numel()
    if d_variance is None:
        return spread(d_mean / positions, x).expand(x.shape)
    factor = d_variance * (2 / positions)
    offset = d_mean / positions - factor * mean
    return torch.addcmul(spread(offset, x), x.to(mean.dtype), spread(factor, x))


def _masked(dy: Tensor, x: Tensor, mask: tuple[Tensor, Tensor] | Tensor | None) -> Tensor:
    """Mask a gradient as a ReLU does, which passes the gradient at NaN."""
    if mask is None:
        return dy
    y = mask if isinstance(mask, Tensor) else affine(x, *mask, None, False)
    return torch.where(y <= 0, 0, dy)
