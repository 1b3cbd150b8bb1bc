"""Norms besides batch norm that are fused, with random statistics and parameters."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def _of(kind: str, dimensions: int, channels: int, **options) -> nn.Module:
    return getattr(nn, f"{kind}{dimensions}d")(channels, **options)


def _ghost(dimensions: int, channels: int, size: int = 2, **options) -> nn.Module:
    from composer.algorithms.ghost_batchnorm import ghost_batchnorm  # slow to import

    kind = getattr(ghost_batchnorm, f"GhostBatchNorm{dimensions}d")
    return kind(_of("BatchNorm", dimensions, channels, **options), size)


# Functions of the number of dimensions and channels.
NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "batch": partial(_of, "BatchNorm"),
    "sync": lambda dimensions, channels: nn.SyncBatchNorm(channels),
    "frozen": lambda dimensions, channels: FrozenBatchNorm2d(channels),
    "ghost": _ghost,
    "ghost, one group": partial(_ghost, size=3),
    "ghost, untracked": partial(_ghost, track_running_stats=False),
    "group": lambda dimensions, channels: nn.GroupNorm(3, channels),
    "group, one": lambda dimensions, channels: nn.GroupNorm(1, channels, affine=False),
    "group, each": lambda dimensions, channels: nn.GroupNorm(channels, channels, eps=0.1),
    "instance": partial(_of, "InstanceNorm"),
    "instance, affine and tracked": partial(
        _of, "InstanceNorm", affine=True, track_running_stats=True, momentum=0.3
    ),
}
OTHERS = tuple(name for name in NORMS if name != "batch")


def make(name: str, channels: int, dimensions: int = 2, dtype=torch.float64) -> nn.Module:
    """Build a norm of the table."""
    return at_random(NORMS[name](dimensions, channels).to(dtype))


def at_random(model: nn.Module) -> nn.Module:
    """Draw the parameters and running statistics of all norms in a model."""
    for module in model.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if is_norm(module) and weight is not None:
            nn.init.normal_(weight, 1, 0.5)
            nn.init.normal_(bias)
        if getattr(module, "running_mean", None) is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, FrozenBatchNorm2d)
    return isinstance(module, kinds)
