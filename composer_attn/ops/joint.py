"""Attention, and attention joined with batch norm, in two passes forward and two backward."""

import torch
from torch import Tensor, nn

from composer_attn.ops import head, passes
from composer_attn.ops.backends import check_backend, find_passes
from composer_attn.ops.passes import spread
from composer_attn.ops.reference import channel_means, scale_channels
from composer_attn.ops.region import Affine, Moments, Region

_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def attend_then_normalize(
    x: Tensor,
    attention: nn.Module,
    norm: nn.Module,
    backend: str = "reference",
    *,
    relu: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute ``norm(attention(x))``, plus ``shortcut``, through a ReLU."""
    check_backend(backend)
    if not _joinable(x, attention, norm):
        return _end(norm(attention(x)), relu, shortcut)
    return _joined(x, head.attention_then_norm, attention, norm, backend, relu, shortcut)


def normalize_then_attend(
    x: Tensor,
    attention: nn.Module,
    norm: nn.Module,
    backend: str = "reference",
    *,
    relu: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Compute ``attention(norm(x))``, plus ``shortcut``, through a ReLU."""
    check_backend(backend)
    if not _joinable(x, attention, norm):
        return _end(attention(norm(x)), relu, shortcut)
    return _joined(x, head.norm_then_attention, attention, norm, backend, relu, shortcut)


def attend(x: Tensor, attention: nn.Module, backend: str = "reference") -> Tensor:
    """Compute ``attention(x)``."""
    check_backend(backend)
    if _traced() or not x.numel():
        means = channel_means(x, attention.channels)
        return scale_channels(x, attention.excitation_of(means))
    region = Region(find_passes(backend, x), relu=False)
    mean, _ = Moments.apply(x, region)
    zero = torch.zeros_like(mean)
    return Affine.apply(head.attention_alone(mean, attention), zero, None, x.detach(), zero, region)


def _joined(x, find_scale, attention, norm, backend, relu, shortcut) -> Tensor:
    positions = x[0, 0].numel()
    inside = shortcut is not None and shortcut.shape == x.shape and shortcut.dtype == x.dtype
    later = (relu, shortcut) if shortcut is not None and not inside else (False, None)
    relu, shortcut = (False, None) if later[1] is not None else (relu, shortcut)
    if _traced():
        mean, variance = passes.moments(x)
        centre = mean.detach()
        scale, shift = find_scale(mean, variance, centre, positions, attention, norm)
        y = passes.affine(x - spread(centre, x), scale, shift, shortcut, relu).to(x.dtype)
    else:
        region = Region(find_passes(backend, x), relu)
        mean, variance = Moments.apply(x, region)
        centre = mean.detach()
        scale, shift = find_scale(mean, variance, centre, positions, attention, norm)
        y = Affine.apply(scale, shift, shortcut, x.detach(), centre, region)
    return _end(y, *later)


def _end(y: Tensor, relu: bool, shortcut: Tensor | None) -> Tensor:
    y = y if shortcut is None else y + shortcut
    return y.relu() if relu else y


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _joinable(x: Tensor, attention: nn.Module, norm: nn.Module) -> bool:
    """Say whether this is the common case; the modules themselves take, or refuse, all else."""
    return (
        isinstance(norm, _NORMS.get(x.dim(), ()))
        and x.is_floating_point()
        and x.shape[1] == attention.channels == norm.num_features
        and x.numel() > x.shape[1]
    )
