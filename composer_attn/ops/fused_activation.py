"""Norm, activation and attention fused, and each pair of them."""

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from composer_attn.ops import autograd_path, fused
from composer_attn.ops.activations import IDENTITY, RELU, Activation, find_activation, phi
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.backends.reference import spread
from composer_attn.ops.backends.table import check_backend
from composer_attn.ops.excitations import Described
from composer_attn.ops.pending_region import activate, excitation_of
from composer_attn.ops.region_sites import begin
from composer_attn.ops.squeeze_and_scale import channel_means, scale_channels

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention

Attention: TypeAlias = "ChannelAttention | Described"


def normalize_activate_attend(
    x: Tensor,
    norm: nn.Module,
    activation: Activation | str | nn.Module,
    attention: Attention,
    backend: str = "reference",
    *,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute ``attention(activation(norm(x)))`` and add ``shortcut``, fused.

    With ``phi`` the activation, ``mu``, ``var`` the batch statistics or the running ones, and
    gamma, beta, eps those of the norm::

        w = gamma / sqrt(var + eps)     z = w x + (beta - mu w)
        m = mean(phi(z)) over space     s = gate(logits(m))         y = s phi(z)

    The forward reads ``x`` for its moments (unless the running ones are used), for ``m``, and to
    write ``y``. In the backward one pass computes five sums over space, and one writes the input
    gradient (:mod:`composer_attn.ops.activated_functions`). Saved for backward are ``x`` and some
    ``(N, C)`` tensors, but neither the norm's nor the activation's output.

    Args:
        x: feature map ``(N, C, *spatial)``, NCHW or channels last, 1 to 3 spatial dimensions.
        norm: a norm over ``C`` channels, in either mode: ``nn.BatchNorm1d``, ``2d``, ``3d``, or
            another one of :mod:`composer_attn.ops.norm_kinds`. Its hooks and those of the
            attention do not run.
        activation: one of :data:`composer_attn.ops.activations.ACTIVATIONS`, or such a module.
        attention: a :class:`composer_attn.attention.ChannelAttention` over ``C`` channels, or one
            described by data (:mod:`composer_attn.ops.excitations`). If its layers have no manual
            gradient, it is computed separately after the other two, which are fused.
        backend: as in :func:`composer_attn.ops.attend_then_normalize`.
        shortcut: a tensor to add, whose shape broadcasts with that of ``x``.

    Returns:
        A tensor like ``x``, in its memory format.

    Raises:
        ArgumentError: the backend or the activation is unknown.
        ValueError, RuntimeError: as raised by the norm or the attention itself: wrong shapes, or a
            single value per channel in training.

    Example:
        >>> import torch
        >>> from composer_attn.attention import SqueezeExcitation
        >>> x = torch.randn(4, 64, 8, 8)
        >>> norm, attention = nn.BatchNorm2d(64), SqueezeExcitation(64, 16)
        >>> y = normalize_activate_attend(x, norm, "silu", attention)
        >>> torch.allclose(y, attention(nn.functional.silu(norm(x))), atol=1e-5)
        True
    """
    check_backend(backend)
    activation = find_activation(activation)
    excitation = excitation_of(attention)
    if not fused.fits_norm(x, norm):
        return _attended(phi(norm(x), activation), attention, backend, shortcut)
    if not _excites(x, attention) or (excitation is None and not autograd_path.traced()):
        return _attended(_region(x, norm, activation, None, backend), attention, backend, shortcut)
    return _region(x, norm, activation, attention, backend, shortcut)


def normalize_activate(
    x: Tensor,
    norm: nn.Module,
    activation: Activation | str | nn.Module,
    backend: str = "reference",
    *,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute ``activation(norm(x) + shortcut)``, fused, as if the attention were constantly 1.

    Arguments, errors and passes are those of :func:`normalize_activate_attend`. Saved for backward
    is ``x``; if a shortcut precedes the activation, also the output for a ReLU, and the sum for
    other activations except the identity.

    Example:
        >>> import torch
        >>> x, norm = torch.randn(4, 64, 8, 8), nn.BatchNorm2d(64)
        >>> y = normalize_activate(x, norm, "hardswish")
        >>> torch.allclose(y, nn.functional.hardswish(norm(x)), atol=1e-5)
        True
    """
    check_backend(backend)
    activation = find_activation(activation)
    if not fused.fits_norm(x, norm):
        z = norm(x)
        return phi(z if shortcut is None else z + shortcut, activation)
    if shortcut is None:
        return _region(x, norm, activation, None, backend)
    alike = fused.is_alike(shortcut, x)
    if autograd_path.traced() or not alike or activation not in (RELU, IDENTITY):
        return phi(_region(x, norm, IDENTITY, None, backend, shortcut), activation)
    return begin(x, norm, backend).result(activation == RELU, shortcut)


def activate_attend(
    x: Tensor,
    activation: Activation | str | nn.Module,
    attention: Attention,
    backend: str = "reference",
    *,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute ``attention(activation(x))`` and add ``shortcut``, fused.

    Arguments, errors and passes are those of :func:`normalize_activate_attend`, with ``z = x``:
    ``x`` is read twice and one map written, where the modules read three maps and write two. Only
    ``x`` is saved for backward.

    Example:
        >>> import torch
        >>> from composer_attn.attention import EfficientChannelAttention
        >>> x, attention = torch.randn(4, 64, 8, 8), EfficientChannelAttention(64)
        >>> y = activate_attend(x, "relu6", attention)
        >>> torch.allclose(y, attention(nn.functional.relu6(x)), atol=1e-6)
        True
    """
    check_backend(backend)
    activation = find_activation(activation)
    if not _excites(x, attention) or (
        excitation_of(attention) is None and not autograd_path.traced()
    ):
        return _attended(phi(x, activation), attention, backend, shortcut)
    return _region(x, None, activation, attention, backend, shortcut)


def _region(
    x: Tensor,
    norm: nn.Module | None,
    activation: Activation,
    attention: "Attention | None",
    backend: str,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute the given parts fused; the caller has checked that they support it."""
    rest = None
    if shortcut is not None and not fused.is_alike(shortcut, x):
        rest, shortcut = shortcut, None
    if autograd_path.traced():
        y = _traced(x, norm, activation, attention, shortcut)
    else:
        y = _by_hand(x, norm, activation, attention, backend, shortcut)
    return y if rest is None else y + rest


def _by_hand(x, norm, activation, attention, backend, shortcut) -> Tensor:
    # The caller has checked that the attention has a manual gradient, if there is one.
    if norm is None:
        pending: Any = activate(x, activation, backend)
    else:
        pending = begin(x, norm, backend)
        pending = pending if activation == IDENTITY else pending.activated(activation)
    by_hand: Any = None if attention is None else excitation_of(attention)
    pending = pending if by_hand is None else pending.attended(*by_hand)
    return pending.result(shortcut=shortcut)


def _traced(x, norm, activation, attention, shortcut) -> Tensor:
    """Compute the same by plain operations, for tracing."""
    dtype = passes.statistics_dtype(x)
    z = x.to(dtype)
    if norm is not None:
        centre, scale, shift = autograd_path.norm_alone(x, norm, passes.moments)
        z = passes.affine(z - spread(centre, x), scale, shift, None, False)
    u = phi(z, activation)
    if attention is not None:
        u = u * spread(_scales(u.mean(tuple(range(2, x.dim()))), attention), u)
    return (u if shortcut is None else u + shortcut).to(x.dtype)


def _excites(x: Tensor, attention: Attention) -> bool:
    """Return whether an attention can be fused on ``x``."""
    squeezes = isinstance(attention, Described) or attention.squeeze == "avg"
    return squeezes and fused.takes(x, attention.channels)


def _scales(means: Tensor, attention: Attention) -> Tensor:
    if isinstance(attention, Described):
        return attention.scales(means)
    return autograd_path.attention_alone(means, attention)


def _attended(u: Tensor, attention: Attention, backend: str, shortcut: Tensor | None) -> Tensor:
    """Compute the attention unfused."""
    if isinstance(attention, Described):
        y = scale_channels(u, attention.scales(channel_means(u, attention.channels)))
    else:
        y = fused.attend(u, attention, backend)
    return y if shortcut is None else y + shortcut
