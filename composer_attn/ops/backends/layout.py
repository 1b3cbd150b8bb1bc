"""The memory that kernels take.

Feature maps come in NCHW or channels last, with 1 to 3 dimensions; numbers of samples and channels
side by side. Kernels get addresses, and see neither strides nor dtypes: whatever is handed to one
goes through here.
"""

from typing import TypeVar

import torch
from torch import Tensor

# Where all are there, so are all that come back.
_Numbers = TypeVar("_Numbers", Tensor, Tensor | None)

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_last(x: Tensor) -> bool:
    """Say whether channels lie side by side; torch has a name for that in 2 and 3 dimensions."""
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    return x.is_contiguous(memory_format=_LAST[x.dim()])


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return ``x`` in one of the two layouts, copied only where it has neither; is it the last?"""
    # Of a view that only changes signs, the memory holds other numbers.
    x = x.resolve_neg()
    if x.is_contiguous():
        return x, False
    if is_last(x):
        return x, True
    return x.contiguous(), False


def like(x: Tensor, last: bool) -> Tensor:
    """Return ``x`` in the layout of another feature map, copied only where it has another."""
    x = x.resolve_neg()
    if not last:
        return x.contiguous()
    if x.dim() == 3:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=_LAST[x.dim()])


def numbers(x: Tensor, dtype: torch.dtype, *values: _Numbers) -> list[_Numbers]:
    """Return numbers of each sample and channel of ``x`` as a kernel reads them.

    They come from anywhere: from logits of a user's own, from autograd, which hands over sums and
    products of any strides, or one number expanded.
    """
    shape = x.shape if x.dim() == 2 else x.shape[:2]
    # One expression, which finds nothing to do nearly always, at every site of a network.
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


def empty_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate a number for each sample and channel of a feature map."""
    return x.new_empty((x.size(0), x.size(1)), dtype=dtype)
