"""The memory layouts that kernels support.

Feature maps are NCHW or channels last, with 1 to 3 spatial dimensions; ``(N, C)`` tensors are
contiguous. Kernels get addresses without strides or dtypes, so that all of their tensors must be
converted by these functions.
"""

from typing import TypeGuard, TypeVar

import torch
from torch import Tensor

# If no argument is None, neither is any result.
_Numbers = TypeVar("_Numbers", Tensor, Tensor | None)

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_last(x: Tensor) -> bool:
    """Return whether ``x`` is channels last; torch has no such memory format in 1 dimension."""
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    return x.is_contiguous(memory_format=_LAST[x.dim()])


def is_dense_map(x: object) -> TypeGuard[Tensor]:
    """Return whether ``x`` is an ordinary dense feature map in one of the two layouts."""
    return (
        type(x) is Tensor
        and x.layout is torch.strided
        and not x.is_neg()
        and 3 <= x.dim() <= 5
        and (x.is_contiguous() or is_last(x))
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return ``x`` in one of the two layouts, copied if it has neither; and if it is the last."""
    # A view with the negative bit has other values in memory.
    x = x.resolve_neg()
    if x.is_contiguous():
        return x, False
    if is_last(x):
        return x, True
    return x.contiguous(), False


def contiguous(x: Tensor) -> Tensor:
    """Return a tensor of any shape whose memory holds its values in order."""
    return x.resolve_neg().contiguous()


def like(x: Tensor, last: bool) -> Tensor:
    """Return ``x`` in the given layout, copied only if necessary."""
    x = x.resolve_neg()
    if not last:
        return x.contiguous()
    if x.dim() == 3:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=_LAST[x.dim()])


def numbers(x: Tensor, dtype: torch.dtype, *values: _Numbers) -> list[_Numbers]:
    """Convert tensors with a value per sample and channel of ``x`` to the layout of kernels.

    They may come from custom logits, or from autograd, which passes sums and products with any
    strides, or a single expanded value.
    """
    shape = x.shape if x.dim() == 2 else x.shape[:2]
    # A single expression: it runs at every site of a network, and rarely has anything to do.
    return [
        value
        if value is None
        or (
            value.dtype is dtype
            and value.is_contiguous()
            and value.shape == shape
            and not value.is_neg()
        )
        else value.to(dtype).expand(shape).resolve_neg().contiguous()
        for value in values
    ]


def empty_numbers(x: Tensor, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Allocate a number of ``(N, C)`` tensors for a feature map."""
    shape = (x.size(0), x.size(1))
    # Each in the way that takes least time.
    first = x.new_empty(shape) if x.dtype is dtype else x.new_empty(shape, dtype=dtype)
    return [first, *[torch.empty_like(first) for _ in range(count - 1)]]


def all_like(mean: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether parameters are in the dtype of the statistics, as except in 16-bit models."""
    dtype = mean.dtype
    for each in parameters:
        if each is not None and (
            each.dtype is not dtype or not each.is_contiguous() or each.is_neg()
        ):
            return False
    return True
