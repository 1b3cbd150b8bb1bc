"""The norms that the passes support, each with its arithmetic between the passes.

====================================================  ============================================
norm                                                  statistics
====================================================  ============================================
``nn.BatchNorm1d``, ``2d``, ``3d``                    those of the batch, or the running ones
``nn.SyncBatchNorm``                                  those of the batches of all ranks, or the
                                                      running ones
Composer's ``GhostBatchNorm1d``, ``2d``, ``3d``       those of groups of samples, or the running
                                                      ones
torchvision's and timm's ``FrozenBatchNorm2d``        the running ones, never updated
``nn.GroupNorm``                                      those of a group of channels of a sample
``nn.InstanceNorm1d``, ``2d``, ``3d``                 those of a channel of a sample, or the
                                                      running ones
====================================================  ============================================
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.ops import averaging
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.manual_gradients import Norm
from composer_attn.ops.normalization import (
    Running,
    running_statistics,
    tensors_of,
    uses_batch,
)

# Tuples, not unions, for torch.compile.
_NUMBERS = (int, float)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class BatchKind:
    """Batch norm: the statistics are those of the batch, or the running ones.

    The other kinds override what differs.
    """

    @staticmethod
    def holder(norm: Any) -> Any:
        """Return the module that has the parameters and the running statistics."""
        return norm

    @classmethod
    def channels(cls, norm: nn.Module) -> int:
        """Return the number of channels that it normalizes."""
        return cls.holder(norm).num_features

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Return whether the norm itself accepts the shape of a non-empty feature map."""
        kind = BATCH_NORMS[x.dim() - 3]
        # A single value has no variance: batch norm rejects it in training.
        known = isinstance(norm, kind) and type(norm)._check_input_dim is kind._check_input_dim
        return known and x.numel() > x.shape[1]

    @classmethod
    def fits(cls, x: Tensor, norm: nn.Module) -> bool:
        """Return whether the norm, as it is now, can be computed by the passes on ``x``."""
        return cls.accepts(x, norm) and _fits(x, cls.holder(norm))

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Return the settings for a call on a feature map of this shape, and count the call."""
        return Norm(norm.eps, running_statistics(norm, shape.numel() // shape[1]))


class SyncKind(BatchKind):
    """``nn.SyncBatchNorm``. On CPU, too, where torch's own refuses several ranks."""

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Also accept a single value on each of several ranks."""
        kind: Any = base_of(type(norm))
        checks = type(norm)._check_input_dim is kind._check_input_dim
        return checks and (x.numel() > x.shape[1] or ranks_of(norm) is not None)

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Average over the ranks, in training on several."""
        of_batch, group = BatchKind.settings(norm, shape), ranks_of(norm)
        if group is None:
            return of_batch
        given = (group, shape[2:].numel(), norm.eps, of_batch.running)
        return Norm(norm.eps, None, averaging.Synchronized(*given))


class GhostKind(BatchKind):
    """Composer's ghost batch norm, which calls a batch norm on groups of samples."""

    @staticmethod
    def holder(norm: Any) -> Any:
        """Return the batch norm within."""
        return norm.batchnorm

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Check the smallest group, and that no hooks or overridden forward would be bypassed."""
        inner, samples = norm.batchnorm, len(x)
        if samples < norm.ghost_batch_size or (norm.training and inner.momentum is None):
            return False
        hooked = inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks
        own = "forward" in vars(inner) or type(inner).forward is not nn.BatchNorm2d.forward
        if hooked or inner._backward_pre_hooks or own:
            return False
        size = _group_size(samples, norm)
        return BatchKind.accepts(x[-(samples % size or size) :], inner)

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Average over groups of samples, with the momentum divided among them."""
        inner, size = norm.batchnorm, _group_size(shape[0], norm)
        if size == shape[0] or not uses_batch(inner):
            return BatchKind.settings(inner, shape)
        fraction = 1 / ceil(shape[0] / norm.ghost_batch_size) if norm.training else 1
        groups = averaging.BySampleGroup(inner, size, shape[2:].numel(), fraction)
        return Norm(inner.eps, None, groups)


class FrozenKind(BatchKind):
    """torchvision's ``FrozenBatchNorm2d``, whose parameters and statistics are all buffers."""

    @classmethod
    def channels(cls, norm: Any) -> int:
        """Return the number of its weights: it has no other record."""
        return norm.weight.numel()

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Accept two-dimensional maps in the dtype of its buffers; it would promote others."""
        return x.dim() == 4 and norm.weight.dtype == x.dtype

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Normalize by the running statistics in any mode."""
        return Norm(norm.eps, _fixed(norm))


class GroupKind(BatchKind):
    """``nn.GroupNorm``, which has no running statistics and no modes."""

    @classmethod
    def channels(cls, norm: Any) -> int:
        """Return the number of channels."""
        return norm.num_channels

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Reject a single value altogether, as torch does, and autocast, which casts to float32."""
        cast = torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.half, torch.bfloat16)
        return x.shape[1] == norm.num_channels and x.numel() > norm.num_groups and not cast

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Average over the channels of each group."""
        return Norm(norm.eps, None, averaging.ByChannelGroup(norm.num_groups))


class InstanceKind(BatchKind):
    """``nn.InstanceNorm1d``, ``2d``, ``3d``, with or without running statistics."""

    @staticmethod
    def accepts(x: Tensor, norm: Any) -> bool:
        """Accept maps with more than one position, or any if running statistics are used."""
        if not isinstance(norm, _INSTANCE_NORMS[x.dim() - 3]) or x.shape[1] != norm.num_features:
            return False
        if _instance_is_fixed(norm):
            return norm.running_mean is not None
        return x.shape[2:].numel() > 1

    @staticmethod
    def settings(norm: Any, shape: torch.Size) -> Norm:
        """Average over nothing but space."""
        if _instance_is_fixed(norm):
            return Norm(norm.eps, _fixed(norm))
        running, momentum = None, norm.momentum
        if norm.running_mean is not None:
            momentum = 0.0 if momentum is None else momentum
            number = shape[2:].numel()
            running = Running(norm.running_mean, norm.running_var, momentum, number)
        return Norm(norm.eps, None, averaging.ByInstance(running))


# Matched by package and name, so that neither package need be installed.
_BY_NAME: dict[tuple[str, str], type[BatchKind]] = {
    ("torchvision", "FrozenBatchNorm2d"): FrozenKind,
    ("timm", "FrozenBatchNorm2d"): FrozenKind,
    ("timm", "FrozenBatchNormAct2d"): FrozenKind,
    ("composer", "_GhostBatchNorm"): GhostKind,
    ("composer_attn", "SyncBatchNorm"): SyncKind,  # which itself uses this table
}
_BY_CLASS: dict[type[nn.Module], type[BatchKind]] = {
    **dict.fromkeys(BATCH_NORMS, BatchKind),
    nn.SyncBatchNorm: SyncKind,
    nn.GroupNorm: GroupKind,
    **dict.fromkeys(_INSTANCE_NORMS, InstanceKind),
}


def kind_of(norm: nn.Module) -> type[BatchKind] | None:
    """Return the kind of a norm, also of a subclass; ``None`` if it is not in the table.

    Example:
        >>> kind_of(nn.GroupNorm(2, 4)).__name__, kind_of(nn.LayerNorm(4))
        ('GroupKind', None)
    """
    if isinstance(norm, BATCH_NORMS):  # without a search, as tracing may be active
        return BatchKind
    base = base_of(type(norm))
    return None if base is None else _in_table(base)


def base_of(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class in the table that a class is, or extends; ``None`` if there is none."""
    return next((each for each in cls.__mro__ if _in_table(each) is not None), None)


def _in_table(cls: type) -> type[BatchKind] | None:
    return _BY_CLASS.get(cls) or _BY_NAME.get((cls.__module__.partition(".")[0], cls.__name__))


def known_kind(norm: nn.Module) -> type[BatchKind]:
    """Return the kind of a norm that is in the table."""
    found = kind_of(norm)
    if found is None:  # callers have checked that it fits
        raise TypeError(f"{type(norm).__name__} is not a known norm")
    return found


def settings(norm: nn.Module, shape: torch.Size) -> tuple[Norm, Tensor | None, Tensor | None]:
    """Return the settings of a norm for a call, its weight and its bias; count the call."""
    kind = known_kind(norm)
    weight, bias, *_ = tensors_of(kind.holder(norm))
    return kind.settings(norm, shape), weight, bias


def _fits(x: Tensor, norm: Any) -> bool:
    """Return whether the passes support the norm's current attributes."""
    of_norm = tensors_of(norm)
    if (of_norm[2] is None) != (of_norm[3] is None) or not isinstance(norm.eps, _NUMBERS):
        return False
    momentum = getattr(norm, "momentum", None)
    if not (momentum is None or isinstance(momentum, _NUMBERS)):
        return False
    shape, device, dtype = x.shape[1:2], x.device, None
    for each in of_norm:
        if each is None:
            continue
        dtype = each.dtype if dtype is None else dtype
        if each.shape != shape or each.device != device or each.dtype != dtype:
            return False
    return dtype is None or dtype in (x.dtype, statistics_dtype(x))


def _fixed(norm: Any) -> Running:
    return Running(norm.running_mean, norm.running_var, 0, 2, fixed=True)


def _instance_is_fixed(norm: Any) -> bool:
    return not norm.training and norm.track_running_stats


def _group_size(samples: int, norm: Any) -> int:
    """Return the samples of a group, as ``Tensor.chunk`` divides them."""
    return ceil(samples / ceil(samples / norm.ghost_batch_size))


def ranks_of(norm: Any) -> Any:
    """Return the process group to synchronize over, or ``None`` if there is nothing to do."""
    distributed = torch.distributed
    if not norm.training or not distributed.is_available() or not distributed.is_initialized():
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None
