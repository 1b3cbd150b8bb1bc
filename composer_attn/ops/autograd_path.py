"""The arithmetic between the passes: from moments ``(N, C)`` to scale and shift of the output.

``attention`` maps means ``(N, C)`` to an excitation ``s`` of the same shape; ``norm`` is a batch
norm with weight ``gamma``, bias ``beta`` and ``eps``. The functions named after both return
``scale`` and ``shift`` such that the output is ``scale (x - centre) + shift``. They consist of
plain operations, differentiated by autograd.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composer_attn.ops.normalization import Running, weighted

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention


def traced() -> bool:
    """Return whether tracing, functorch or forward-mode AD is active: all need plain operations."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        # Dispatch modes: fake tensors, make_fx, flop counters.
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


# Missing in torch 2.6.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def exported() -> bool:
    """Return whether torch.export is running outside dynamo, where torch 2.7 cannot tell."""
    return not torch.compiler.is_dynamo_compiling() and _is_exporting()


def finite(mean: Tensor) -> Tensor:
    """Return the detached means with 0 for non-finite ones, to be subtracted from a feature map.

    Subtracting an infinite mean would turn all positions of its channel into NaN.
    """
    return torch.nan_to_num(mean.detach(), nan=0.0, posinf=0.0, neginf=0.0)


def attention_alone(mean: Tensor, attention: "ChannelAttention") -> Tensor:
    """Compute the excitation ``(N, C)`` in the dtype of the means.

    A custom ``logits`` may change its input in place, and may return any shape that broadcasts.
    """
    own = attention.logits_by_hand() is None
    s = attention.excitation_of(mean.clone() if own else mean)
    return s.to(mean.dtype).expand_as(mean)


def attention_then_norm(
    mean: Tensor, variance: Tensor, centre: Tensor, positions: int, attention, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``norm(attention(x))``."""
    s = attention_alone(mean, attention)
    return norm_of_scaled(s, mean, variance, centre, positions, norm)


def norm_of_scaled(
    s: Tensor, mean: Tensor, variance: Tensor, centre: Tensor, positions: int, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``norm(s x)``.

    With ``m`` and ``v`` the moments of ``x`` over space::

        mu  = mean_n(s m)        var = mean_n(s^2 v) + var_n(s m)

    which is exact, and free of cancellation.
    """
    mu, var = _statistics(lambda: (s * mean, s * s * variance), positions, norm)
    weight, bias = _rescaling(var, norm)
    return s * weight, _plus(weight * (s * centre - mu), bias)


def norm_then_attention(
    mean: Tensor, variance: Tensor, centre: Tensor, positions: int, attention, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``attention(norm(x))``."""
    mu, var = _statistics(lambda: (mean, variance), positions, norm)
    weight, bias = _rescaling(var, norm)
    s = attention_alone(_plus(weight * (mean - mu), bias), attention)
    return s * weight, s * _plus(weight * (centre - mu), bias)


def norm_alone(x: Tensor, norm, moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return centre, scale and shift ``(N, C)`` of ``norm(x)``; ``moments`` is a function."""
    if uses_batch(norm):
        mean, variance = moments(x)
        centre = finite(mean)
        mu, var = _statistics(lambda: (mean, variance), x.shape[2:].numel(), norm)
    else:
        mu, var = norm.running_mean, norm.running_var
        centre = mu.expand(x.shape[:2])
    weight, bias = _rescaling(var, norm)
    return centre, weight.expand_as(centre), _plus(weight * (centre - mu), bias)


def uses_batch(norm) -> bool:
    """Return whether a norm normalizes by the batch statistics."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def _statistics(moments, positions: int, norm) -> tuple[Tensor, Tensor]:
    """Return the mean and variance ``(C,)`` to normalize by: the batch's, or the running ones."""
    if not uses_batch(norm):
        return norm.running_mean, norm.running_var
    means, variances = moments()
    mu = means.mean(0)
    var = variances.mean(0) + (means - mu).square().mean(0)
    running = running_statistics(norm, positions * means.shape[0])
    if running is not None:
        running.move(mu.detach(), var.detach())
    return mu, var


def running_statistics(norm, count: int) -> Running | None:
    """Return the running statistics to use, or to update by ``count`` values per channel.

    Also increment the norm's batch counter. As in ``nn.BatchNorm``, the current attributes of the
    norm apply, whatever it was built with. A momentum of ``None`` averages over all batches.
    """
    if not uses_batch(norm):
        return Running(norm.running_mean, norm.running_var, 0, 2, fixed=True)
    if not (norm.training and norm.track_running_stats):
        return None
    kept, momentum, batches = norm.running_mean, norm.momentum, norm.num_batches_tracked
    if batches is not None:
        batches.add_(1)
    if kept is None:
        return None
    if momentum is None:
        momentum = 0.0 if batches is None else batches.to(kept).reciprocal()
    return Running(kept, norm.running_var, momentum, count)


def _rescaling(var: Tensor, norm) -> tuple[Tensor, Tensor | None]:
    """Return ``gamma / sqrt(var + eps)`` and ``beta``."""
    return weighted(torch.rsqrt(var + norm.eps), norm.weight), norm.bias


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
