"""Batch norms that keep their pretrained statistics, as detectors with small batches do."""

from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

_TENSORS = ("weight", "bias", "running_mean", "running_var")


def freeze_norms(module: nn.Module) -> None:
    """Replace the batch norms inside a module by frozen ones: torchvision's, or timm's.

    Weights, statistics and state-dict keys stay the same, but for the count of batches, which
    frozen norms do not have.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> freeze_norms(model)
        >>> model[1]
        FrozenBatchNorm2d(8, eps=1e-05)
    """
    if any(_is_timms(child) for child in module.modules()):
        from timm.layers import freeze_batch_norm_2d

        freeze_batch_norm_2d(module)
        return
    for parent in list(module.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, _copied(norm, FrozenBatchNorm2d(norm.num_features, norm.eps)))


def thaw_norms(module: nn.Module) -> None:
    """Replace torchvision's frozen batch norms inside a module by ones that are trained."""
    for parent in list(module.modules()):
        norms: list[tuple[str, Any]] = list(parent.named_children())
        for name, norm in norms:
            if type(norm) is FrozenBatchNorm2d:
                setattr(parent, name, _copied(norm, nn.BatchNorm2d(len(norm.weight), norm.eps)))


def set_epsilon(module: nn.Module, eps: float) -> None:
    """Set the epsilon of the frozen norms inside a module."""
    for norm in module.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.eps = eps


def _copied(norm: Any, new: Any) -> nn.Module:
    new.to(norm.weight.device)
    with torch.no_grad():
        for name in _TENSORS:
            getattr(new, name).copy_(getattr(norm, name))
    return new


def _is_timms(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "BatchNormAct2d" and cls.__module__.partition(".")[0] == "timm"
        for cls in type(module).__mro__
    )
