"""The arithmetic of attention then batch norm on ``(N, C)`` tensors, with a manual gradient.

Under autograd it would be some twenty operations on small tensors at each site, which take a
network as much time as the passes over its feature maps.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Running(NamedTuple):
    """The running statistics of a norm.

    Attributes:
        mean: running mean, ``(C,)``.
        variance: running variance, ``(C,)``, unbiased.
        momentum: weight of the new statistics in an update.
        number: number of values per channel of the new statistics, at least 2.
        fixed: whether to normalize by them, as in evaluation mode, instead of updating them.
    """

    mean: Tensor
    variance: Tensor
    momentum: float | Tensor
    number: int
    fixed: bool = False

    def move(self, mean: Tensor, variance: Tensor) -> None:
        """Update them by the statistics of a batch, as ``nn.BatchNorm`` does."""
        self.blend(mean, variance * (self.number / (self.number - 1)))

    def blend(self, mean: Tensor, unbiased: Tensor) -> None:
        """Update them by new ones, of which the variance is unbiased already."""
        with torch.no_grad():
            for running, new in ((self.mean, mean), (self.variance, unbiased)):
                # By .data, which leaves the version counter unchanged, as torch does: other calls
                # of the norm may have saved them for backward.
                running.data.lerp_(new.to(running.dtype), self.momentum)


def tensors_of(norm) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return weight, bias, running mean and running variance of a norm; ``None`` if absent."""
    own, kept = norm._parameters, norm._buffers
    if "weight" in own and "bias" in own and "running_mean" in kept and "running_var" in kept:
        # The usual case: nn.Module's own lookup takes longer than the arithmetic on small maps.
        return own["weight"], own["bias"], kept["running_mean"], kept["running_var"]
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (getattr(norm, name, None) for name in names)
    return weight, bias, mean, variance


def uses_batch(norm) -> bool:
    """Return whether a norm normalizes by the batch statistics."""
    _, _, mean, variance = tensors_of(norm)
    return norm.training or (mean is None and variance is None)


def running_statistics(norm, count: int) -> Running | None:
    """Return the running statistics to use, or to update by ``count`` values per channel.

    Also increment the norm's batch counter. As in ``nn.BatchNorm``, the current attributes of the
    norm apply, whatever it was built with. A momentum of ``None`` averages over all batches.
    """
    _, _, mean, variance = tensors_of(norm)
    if not norm.training and mean is not None and variance is not None:
        return Running(mean, variance, 0, 2, fixed=True)
    if not (norm.training and norm.track_running_stats):
        return None
    momentum, batches = norm.momentum, norm.num_batches_tracked
    if batches is not None:
        batches.add_(1)
    if mean is None or variance is None:
        return None
    if momentum is None:
        momentum = 0.0 if batches is None else batches.to(mean).reciprocal()
    return Running(mean, variance, momentum, count)


def weighted(inverse: Tensor, weight: Tensor | None) -> Tensor:
    """Compute ``gamma / sqrt(var + eps)``, given ``1 / sqrt(var + eps)``."""
    return inverse if weight is None else inverse * weight


def empty_results(mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the outputs of :func:`normalization`."""
    scale, channels = torch.empty_like(mean), mean.new_empty(mean.shape[1:])
    return scale, torch.empty_like(mean), channels, torch.empty_like(channels)


def empty_gradients(mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate the outputs of :func:`normalization_gradient`."""
    return torch.empty_like(mean), *empty_results(mean)


def normalization(
    s: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize ``s x``, whose channels have means ``s mean`` and variances ``s^2 variance``.

    Args:
        s: excitation ``(N, C)``.
        mean: mean of ``x`` over space, ``(N, C)``.
        variance: variance of ``x`` over space, ``(N, C)``.
        weight: weight of the norm, ``(C,)``.
        bias: bias of the norm, ``(C,)``.
        eps: eps of the norm.
        running: the running statistics to update or to normalize by, if any.

    Returns:
        ``scale`` and ``shift (N, C)`` with ``norm(s x) = scale x + shift``; and for each channel
        ``mu = mean_n(s mean)`` and ``1 / sqrt(var + eps)``, where
        ``var = mean_n(s^2 variance) + var_n(s mean)``; if ``running`` is fixed, its mean and
        variance take the place of ``mu`` and ``var``.
    """
    if running is not None and running.fixed:
        mu, var = (each.to(s.dtype) for each in running[:2])
    else:
        deviation = s * mean
        mu = deviation.mean(0)
        deviation -= mu
        var = torch.addcmul(deviation.square(), s.square(), variance).mean(0)
    inverse = torch.rsqrt(var + eps)
    w = weighted(inverse, weight)
    if running is not None and not running.fixed:
        running.move(mu, var)
    shift = -mu * w if bias is None else bias - mu * w
    return s * w, shift.expand_as(s).contiguous(), mu, inverse


def normalization_gradient(
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
    """Differentiate ``scale (x - mean) + (scale mean + shift)``, with the first ``mean`` constant.

    Returns:
        The gradients of ``s``, ``mean``, ``variance``, ``weight`` and ``bias``, given
        ``d_scale = sum(dy (x - mean))`` and ``d_shift = sum(dy)``.
    """
    w = weighted(inverse, weight)
    deviation = torch.addcmul(-mu, s, mean)
    d_bias = d_shift.sum(0)
    d_w = torch.addcmul(d_scale * s, d_shift, deviation).sum(0)
    if fixed:
        # Multiplying the sums over all samples by 0 would give NaN if one of them is infinite.
        d_s = torch.addcmul(d_scale * w, d_shift * w, mean)
        return d_s, torch.zeros_like(mean), torch.zeros_like(mean), d_w * inverse, d_bias
    # Twice the gradient of var, and the gradient of mu, each divided among the N samples.
    share = -1 / s.shape[0]
    d_var = d_w * w * inverse * inverse * share
    d_scaled = torch.addcmul(w * d_bias * share, d_var, deviation)
    # The terms nearly cancel if the mean is large: add them before multiplying by it.
    d_s = torch.addcmul(torch.addcmul(d_scaled, d_shift, w) * mean, d_scale, w)
    d_s = torch.addcmul(d_s, d_var * s, variance)
    return d_s, d_scaled * s, s.square() * d_var / 2, d_w * inverse, d_bias
