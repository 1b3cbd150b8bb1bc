"""The arithmetic between the passes: from moments ``(N, C)`` to scale and shift of the output.

``attention`` maps means ``(N, C)`` to an excitation ``s`` of the same shape; ``norm`` is one of
:mod:`composer_attn.ops.norm_kinds` with weight ``gamma``, bias ``beta`` and
``eps``. The functions named after both return ``scale`` and ``shift`` such that the output is
``scale (x - centre) + shift``. They consist of plain operations, differentiated by autograd.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

from composer_attn.ops.manual_gradients import Norm
from composer_attn.ops.norm_kinds import settings
from composer_attn.ops.normalization import weighted

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention


# Found once: after a convolution, whose maps fill the caches, each look-up takes a microsecond.
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch._C._is_tracing
_dispatch_modes = torch._C._len_torch_dispatch_stack  # fake tensors, make_fx, flop counters
_transforms = torch._C._are_functorch_transforms_active


def traced() -> bool:
    """Return whether tracing, functorch or forward-mode AD is active: all need plain operations."""
    return (
        _is_compiling()
        or _is_tracing()
        or _dispatch_modes() > 0
        or _transforms()
        or forward_ad._current_level >= 0
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
    mean: Tensor, variance: Tensor, centre: Tensor, shape: torch.Size, attention, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``norm(attention(x))``."""
    s = attention_alone(mean, attention)
    return norm_of_scaled(s, mean, variance, centre, shape, norm)


def norm_of_scaled(
    s: Tensor, mean: Tensor, variance: Tensor, centre: Tensor, shape: torch.Size, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``norm(s x)``.

    With ``m`` and ``v`` the moments of ``x`` over space::

        mu  = mean_n(s m)        var = mean_n(s^2 v) + var_n(s m)

    which is exact, and free of cancellation.
    """
    of_norm, *of_each = settings(norm, shape)
    mu, var = _statistics(lambda: (s * mean, s * s * variance), of_norm)
    weight, bias = _rescaling(var, of_norm.eps, *of_each)
    return s * weight, _plus(weight * (s * centre - mu), bias)


def norm_then_attention(
    mean: Tensor, variance: Tensor, centre: Tensor, shape: torch.Size, attention, norm
) -> tuple[Tensor, Tensor]:
    """Return scale and shift of ``attention(norm(x))``."""
    of_norm, *of_each = settings(norm, shape)
    mu, var = _statistics(lambda: (mean, variance), of_norm)
    weight, bias = _rescaling(var, of_norm.eps, *of_each)
    s = attention_alone(_plus(weight * (mean - mu), bias), attention)
    return s * weight, s * _plus(weight * (centre - mu), bias)


def norm_alone(x: Tensor, norm, moments) -> tuple[Tensor, Tensor, Tensor]:
    """Return centre, scale and shift ``(N, C)`` of ``norm(x)``; ``moments`` is a function."""
    of_norm, *of_each = settings(norm, x.shape)
    running = of_norm.running
    if running is not None and running.fixed:
        mu, var = running.mean, running.variance
        centre = mu.expand(x.shape[:2])
    else:
        mean, variance = moments(x)
        centre = finite(mean)
        mu, var = _statistics(lambda: (mean, variance), of_norm)
    weight, bias = _rescaling(var, of_norm.eps, *of_each)
    return centre, weight.expand_as(centre), _plus(weight * (centre - mu), bias)


def _statistics(moments, norm: Norm) -> tuple[Tensor, Tensor]:
    """Return mean and variance to normalize by, and update the running ones."""
    running = norm.running
    if running is not None and running.fixed:
        return running.mean, running.variance
    means, variances = moments()
    if norm.averaging is not None:
        mu, var = norm.averaging.statistics(means, variances)
        norm.averaging.update(mu.detach(), var.detach())
        return mu, var
    mu = means.mean(0)
    var = variances.mean(0) + (means - mu).square().mean(0)
    if running is not None:
        running.move(mu.detach(), var.detach())
    return mu, var


def _rescaling(
    var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return ``gamma / sqrt(var + eps)`` and ``beta``."""
    return weighted(torch.rsqrt(var + eps), weight), bias


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
