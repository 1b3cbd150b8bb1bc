"""Attention, and attention fused with batch norm, in two passes forward and two backward."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from composer_attn.errors import ArgumentError
from composer_attn.ops import autograd_path
from composer_attn.ops.activation_passes import PassesWithActivation
from composer_attn.ops.activations import IDENTITY, RELU, Activation, find_activation, phi
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.backends.reference import spread
from composer_attn.ops.backends.table import check_backend, find_activated
from composer_attn.ops.manual_gradients import AttentionFirst, NormFirst
from composer_attn.ops.norm_kinds import BATCH_NORMS, BatchKind, kind_of
from composer_attn.ops.prepared_site import excite
from composer_attn.ops.sites import NormalizedSite
from composer_attn.ops.squeeze_and_scale import scale_channels
from composer_attn.ops.stages import normalize

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention

# The arithmetic between the passes under autograd, if there is no manual gradient.
_HEADS = {
    AttentionFirst: autograd_path.attention_then_norm,
    NormFirst: autograd_path.norm_then_attention,
}


def attend_then_normalize(
    x: Tensor,
    attention: "ChannelAttention",
    norm: nn.Module,
    backend: str = "reference",
    *,
    relu: bool = False,
    shortcut: Tensor | None = None,
    activation: Activation | str | nn.Module | None = None,
) -> Tensor:
    """Compute ``norm(attention(x))``, add ``shortcut``, and apply a ReLU, fused.

    With ``m``, ``v`` the mean and variance of ``x`` over space, ``s = gate(logits(m))`` the
    excitation, and gamma, beta, eps those of the norm, in training mode::

        mu = mean_n(s m)      var = mean_n(s^2 v) + var_n(s m)      w = gamma / sqrt(var + eps)
        y  = s w x + (beta - mu w)

    In evaluation mode ``mu`` and ``var`` are the running statistics, which are updated as by
    ``nn.BatchNorm``. Other norms average over other sets of values
    (:mod:`composer_attn.ops.averaging`). Statistics are float32 if ``x`` has 16 bits.

    The forward reads ``x`` twice and writes ``y`` once; the backward reads ``x`` and the gradient
    twice and writes the input gradient once. Saved for backward are ``x``, some ``(N, C)`` tensors,
    and ``y`` if there are both ``relu`` and ``shortcut``.

    Args:
        x: feature map ``(N, C, *spatial)``, NCHW or channels last, 1 to 3 spatial dimensions.
        attention: a :class:`composer_attn.attention.ChannelAttention` over ``C`` channels. Its
            hooks and those of the norm do not run.
        norm: a norm over ``C`` channels, in either mode: ``nn.BatchNorm1d``, ``2d``, ``3d``, or
            another one of :mod:`composer_attn.ops.norm_kinds`, with its own statistics.
        backend: ``auto``, ``reference``, ``inductor``, ``triton`` or ``cpp``: the implementation of
            the passes (:mod:`composer_attn.ops.backends.table`). Under ``torch.compile``,
            ``torch.export`` and ``torch.jit.trace`` plain operations are used instead.
        relu: whether to apply a final ReLU.
        shortcut: a tensor to add before the ReLU, whose shape broadcasts with that of ``x``.
        activation: an activation to apply instead of a ReLU: one of
            :data:`composer_attn.ops.activations.ACTIVATIONS`, or such a module. Saved for backward
            is ``x``, and also the sum if a shortcut precedes an activation other than ReLU.

    Returns:
        A tensor like ``x``, in its memory format.

    Raises:
        ArgumentError: the backend or the activation is unknown.
        ValueError, RuntimeError: as raised by the attention or the norm itself: wrong shapes, or a
            single value per channel in training.

    Example:
        >>> import torch
        >>> from composer_attn.attention import SqueezeExcitation
        >>> x = torch.randn(4, 64, 8, 8)
        >>> attention, norm = SqueezeExcitation(64, 16), nn.BatchNorm2d(64)
        >>> y = attend_then_normalize(x, attention, norm, relu=True)
        >>> torch.allclose(y, norm(attention(x)).relu(), atol=1e-5)
        True
    """
    check_backend(backend)
    activation = _ending(relu, activation)
    if not joinable(x, attention, norm):
        return _end(norm(attention(x)), activation, shortcut)
    return _fused(x, AttentionFirst, attention, norm, backend, activation, shortcut)


def normalize_then_attend(
    x: Tensor,
    attention: "ChannelAttention",
    norm: nn.Module,
    backend: str = "reference",
    *,
    relu: bool = False,
    shortcut: Tensor | None = None,
    activation: Activation | str | nn.Module | None = None,
) -> Tensor:
    """Compute ``attention(norm(x))``, add ``shortcut``, and apply a ReLU, fused.

    With ``m``, ``v`` the mean and variance of ``x`` over space, in training mode::

        mu = mean_n(m)        var = mean_n(v) + var_n(m)        w = gamma / sqrt(var + eps)
        s  = gate(logits(w (m - mu) + beta))        y = s w x + s (beta - mu w)

    Arguments, errors and passes are those of :func:`attend_then_normalize`.

    Example:
        >>> import torch
        >>> from composer_attn.attention import EfficientChannelAttention
        >>> x = torch.randn(4, 64, 8, 8)
        >>> attention, norm = EfficientChannelAttention(64), nn.BatchNorm2d(64)
        >>> y = normalize_then_attend(x, attention, norm, shortcut=x)
        >>> torch.allclose(y, attention(norm(x)) + x, atol=1e-5)
        True
    """
    check_backend(backend)
    activation = _ending(relu, activation)
    if not joinable(x, attention, norm):
        return _end(attention(norm(x)), activation, shortcut)
    return _fused(x, NormFirst, attention, norm, backend, activation, shortcut)


def attend(x: Tensor, attention: "ChannelAttention", backend: str = "reference") -> Tensor:
    """Compute ``attention(x)`` with a backward that reads ``x`` once and the gradient twice.

    ``dx = s dy + dm / L``, where ``dm`` is the gradient of the means, given ``ds = sum(dy x)``.
    Arguments and errors are those of :func:`attend_then_normalize`.

    Example:
        >>> import torch
        >>> from composer_attn.attention import SqueezeExcitation
        >>> x, attention = torch.randn(4, 64, 8, 8), SqueezeExcitation(64, 16)
        >>> torch.allclose(attend(x, attention), attention(x), atol=1e-6)
        True
    """
    check_backend(backend)
    if attention.squeeze != "avg":  # its excitation needs more than the moments
        return attention(x)
    if autograd_path.traced() or not plain_enough(x, attention):
        return scale_channels(x, attention.excitation(x))
    return excite(x, attention, backend).result()


def _fused(x, order, attention, norm, backend, activation, shortcut) -> Tensor:
    rest = (IDENTITY, None)
    if shortcut is not None and not is_alike(shortcut, x):
        rest, activation, shortcut = (activation, shortcut), IDENTITY, None
    elif shortcut is not None and activation not in (IDENTITY, RELU):
        # Its derivative needs the sum, which cannot be recomputed from the output.
        rest, activation = (activation, None), IDENTITY
    if autograd_path.traced():
        centre, scale, shift = _scale_and_shift(x, passes.moments(x), order, attention, norm)
        z = passes.affine(x - spread(centre, x), scale, shift, shortcut, False)
        return _end(phi(z, activation).to(x.dtype), *rest)
    stage: Any
    if order is NormFirst:
        stage = normalize(x, attention, norm, backend)
    else:
        stage = excite(x, attention, backend).normalized(norm)
    if activation not in (IDENTITY, RELU):
        stage = stage.general() if isinstance(stage, NormalizedSite) else stage
        stage.end_in(
            PassesWithActivation(stage.passes, find_activated(backend, x, activation), activation)
        )
    return _end(stage.result(activation != IDENTITY, shortcut), *rest)


def _ending(relu: bool, activation: Activation | str | nn.Module | None) -> Activation:
    """Return the final activation, given by either argument."""
    if activation is None:
        return RELU if relu else IDENTITY
    found = find_activation(activation)
    if relu and found != RELU:
        raise ArgumentError(f"relu=True and activation={activation!r} contradict each other")
    return found


def _scale_and_shift(x, moments, order, attention, norm) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the arithmetic between the passes under autograd."""
    mean, variance = moments
    centre = autograd_path.finite(mean)
    return centre, *_HEADS[order](mean, variance, centre, x.shape, attention, norm)


def _end(y: Tensor, activation: Activation, shortcut: Tensor | None) -> Tensor:
    return phi(y if shortcut is None else y + shortcut, activation)


def plain_enough(x: Tensor, attention: "ChannelAttention") -> bool:
    """Return whether the passes support ``x``; otherwise the modules themselves are called."""
    return takes(x, attention.channels) and attention.squeeze == "avg"


def takes(x: Tensor, channels: int) -> bool:
    """Return whether the passes support ``x`` with this number of channels."""
    return 3 <= x.dim() <= 5 and x.is_floating_point() and x.shape[1] == channels and x.numel() > 0


def is_alike(shortcut: Tensor, x: Tensor) -> bool:
    """Return whether a shortcut is like ``x``, so that a pass can add it."""
    return (shortcut.shape, shortcut.dtype, shortcut.device) == (x.shape, x.dtype, x.device)


def joinable(x: Tensor, attention: "ChannelAttention", norm: nn.Module) -> bool:
    """Return whether attention and norm can be fused on ``x``."""
    return plain_enough(x, attention) and fits_norm(x, norm)


def fits_norm(x: Tensor, norm: nn.Module) -> bool:
    """Return whether a norm accepts ``x`` and can be computed by the passes."""
    if x.dim() not in (3, 4, 5) or not takes(x, x.shape[1]):
        return False
    if isinstance(norm, BATCH_NORMS):
        return BatchKind.fits(x, norm)
    if autograd_path.traced():  # other norms are traced as the modules that they are
        return False
    kind = kind_of(norm)
    return kind is not None and kind.fits(x, norm)
