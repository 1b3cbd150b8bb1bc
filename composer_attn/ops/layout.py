"""The two memory layouts that kernels take: NCHW, and channels last, with 1 to 3 dimensions."""

from torch import Tensor


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Return ``x`` in one of the two layouts, copied only where it has neither; is it the last?"""
    if x.is_contiguous():
        return x, False
    if x.movedim(1, -1).is_contiguous():
        return x, True
    return x.contiguous(), False


def like(x: Tensor, last: bool) -> Tensor:
    """Return ``x`` in the layout of another feature map, copied only where it has another."""
    if last:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.contiguous()
