"""The arithmetic between two passes: from moments ``(N, C)`` to the scale and shift of the output.

``attention`` maps means ``(N, C)`` to an excitation ``s`` of the same shape; ``norm`` is a batch
norm with weight ``gamma``, bias ``beta`` and ``eps``. Every function returns ``scale``, ``shift``
such that the output is ``scale (x - centre) + shift``. Ordinary autograd differentiates them.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def traced() -> bool:
    """Say whether someone looks on who needs plain operations, not functions with own gradients."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def attention_alone(mean: Tensor, attention: nn.Module) -> Tensor:
    """Compute the excitation, in the dtype of the means."""
    return attention.excitation_of(mean).to(mean.dtype)


def attention_then_norm(
    mean: Tensor, variance: Tensor, centre: Tensor, positions: int, attention, norm
) -> tuple[Tensor, Tensor]:
    """Scale and shift of ``norm(attention(x))``.

    With ``m``, ``v`` the moments of ``x`` over space::

        mu  = mean_n(s m)        var = mean_n(s^2 v) + var_n(s m)

    which is exact, and free of cancellation.
    """
    s = attention_alone(mean, attention)
    if _uses_batch(norm) and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        scale, shift, mu, var = _Normalize.apply(
            s, mean, variance, norm.weight, norm.bias, norm.eps
        )
        _track(norm, mu, var, positions * len(mean))
        return scale, shift
    mu, var = _statistics(lambda: (s * mean, s * s * variance), positions, norm)
    weight, bias = _rescaling(var, norm)
    return s * weight, _plus(weight * (s * centre - mu), bias)


class _Normalize(torch.autograd.Function):
    """The same for a batch's statistics, differentiated by hand: a third of the time and memory.

    ``w = gamma / sqrt(var + eps)``; scale is ``s w``, and shift ``w (s centre - mu) + beta`` with
    ``centre`` equal to the mean, but constant.
    """

    @staticmethod
    def forward(ctx, s, mean, variance, weight, bias, eps):
        scaled = s * mean
        mu = scaled.mean(0)
        deviation = scaled.sub_(mu)
        var = torch.addcmul(deviation.square(), s.square(), variance).mean(0)
        inverse = torch.rsqrt(var + eps)
        w = inverse if weight is None else inverse * weight
        ctx.save_for_backward(s, mean, variance, mu, inverse, weight, bias)
        ctx.mark_non_differentiable(mu, var)
        return s * w, _plus(w * deviation, bias), mu, var

    @staticmethod
    @once_differentiable
    def backward(ctx, d_scale, d_shift, _, __):
        s, mean, variance, mu, inverse, weight, bias = ctx.saved_tensors
        w = inverse if weight is None else inverse * weight
        deviation = torch.addcmul(-mu, s, mean)
        d_bias = d_shift.sum(0)
        d_w = torch.addcmul(d_scale * s, d_shift, deviation).sum(0)
        # Twice the gradient of var, and the gradient of mu, each shared by the N samples.
        d_var = d_w * w * inverse * inverse / -len(s)
        d_scaled = torch.addcmul(w * d_bias / -len(s), d_var, deviation)
        d_s = torch.addcmul(d_scale, d_shift, mean) * w
        d_s.addcmul_(d_scaled, mean).addcmul_(d_var * s, variance)
        d_variance = s.square() * d_var / 2
        d_weight = None if weight is None else (d_w * inverse).to(weight.dtype)
        d_bias = None if bias is None else d_bias.to(bias.dtype)
        return d_s, d_scaled * s, d_variance, d_weight, d_bias, None


def norm_then_attention(
    mean: Tensor, variance: Tensor, centre: Tensor, positions: int, attention, norm
) -> tuple[Tensor, Tensor]:
    """Scale and shift of ``attention(norm(x))``."""
    mu, var = _statistics(lambda: (mean, variance), positions, norm)
    weight, bias = _rescaling(var, norm)
    s = attention_alone(_plus(weight * (mean - mu), bias), attention)
    return s * weight, s * _plus(weight * (centre - mu), bias)


def _uses_batch(norm) -> bool:
    return norm.training or norm.running_mean is None


def _statistics(moments, positions: int, norm) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(C,)`` to normalize by: the batch's, or the running ones."""
    if not _uses_batch(norm):
        return norm.running_mean, norm.running_var
    means, variances = moments()
    mu = means.mean(0)
    var = variances.mean(0) + (means - mu).square().mean(0)
    _track(norm, mu, var, positions * len(means))
    return mu, var


def _track(norm, mu: Tensor, var: Tensor, count: int) -> None:
    """Keep running statistics of ``count`` values a channel, if the norm does."""
    if norm.training and norm.running_mean is not None:
        _update_running(norm, mu.detach(), var.detach() * (count / (count - 1)))


@torch.no_grad()
def _update_running(norm, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Move the running statistics as ``nn.BatchNorm`` does; a momentum of None averages all."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased_variance)):
        new = new.to(running.dtype)
        momentum = norm.momentum
        if momentum is None:
            momentum = norm.num_batches_tracked.to(running.dtype).reciprocal()
        running.lerp_(new, momentum)


def _rescaling(var: Tensor, norm) -> tuple[Tensor, Tensor | None]:
    """``gamma / sqrt(var + eps)``, and beta."""
    inverse = torch.rsqrt(var + norm.eps)
    return inverse if norm.weight is None else inverse * norm.weight, norm.bias


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
