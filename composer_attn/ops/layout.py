"""The two memory layouts that kernels take: NCHW, and channels last, with 1 to 3 dimensions."""

import torch
from torch import Tensor

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_last(x: Tensor) -> bool:
    """Say whether channels lie side by side; torch has a name for that in 2 and 3 dimensions."""
    if x.dim() == 3:
        return x.transpose(1, 2).is_contiguous()
    return x.is_contiguous(memory_format=_LAST[x.dim()])


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return ``x`` in one of the two layouts, copied only where it has neither; is it the last?"""
    if x.is_contiguous():
        return x, False
    if is_last(x):
        return x, True
    return x.contiguous(), False


def like(x: Tensor, last: bool) -> Tensor:
    """Return ``x`` in the layout of another feature map, copied only where it has another."""
    if not last:
        return x.contiguous()
    if x.dim() == 3:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous(memory_format=_LAST[x.dim()])
