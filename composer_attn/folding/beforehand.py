"""The averages of a convolution's output, computed from its input before it runs.

They are linear in the input. With ``m_k`` the average of what place ``k`` of the kernel sees (the
input without some of its border, and zeros where it is padded),

    mean(conv(x)) = sum over k of W_k m_k + b

so that the excitation of a single image can be multiplied into the weights, and no pass over the
output is needed.
"""

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_attn.ops.backends.layout import is_last


class Windows(NamedTuple):
    """What a kernel sees along one dimension.

    Attributes:
        size: number of positions of the input.
        kernel: number of places of the kernel.
        stride: distance from one window to the next.
        dilation: distance from one place of the kernel to the next.
        low: zeros before the input.
        high: zeros after it.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int

    @property
    def number(self) -> int:
        """The number of windows; 0 if the input is smaller than one."""
        free = self.size + self.low + self.high - self.dilation * (self.kernel - 1) - 1
        return free // self.stride + 1 if free >= 0 else 0

    @property
    def sees_all(self) -> bool:
        """Whether each place of the kernel sees the whole input, without zeros."""
        return self.kernel == self.stride == 1 and not (self.low or self.high)


def windows_of(conv: Any, x: Tensor) -> tuple[Windows, ...]:
    """Return what a convolution's kernel sees along each dimension of an input."""
    found = []
    for i, size in enumerate(x.shape[2:]):
        kernel, stride, dilation = conv.kernel_size[i], conv.stride[i], conv.dilation[i]
        if conv.padding == "same":
            both = dilation * (kernel - 1)
            low, high = both // 2, both - both // 2
        else:
            low = high = 0 if conv.padding == "valid" else conv.padding[i]
        found.append(Windows(size, kernel, stride, dilation, low, high))
    return tuple(found)


def output_means(conv: Any, x: Tensor, windows: tuple[Windows, ...]) -> Tensor:
    """Average the output of a convolution over space, without computing it.

    Args:
        conv: a torch convolution, not transposed, padded by zeros if at all.
        x: one image, ``(1, C_in, *spatial)``.
        windows: what its kernel sees.

    Returns:
        Means ``(1, C)``.
    """
    weight, groups = conv.weight, conv.groups
    means = _seen(x, windows).unflatten(0, (groups, -1))  # (groups, C_in / groups, *kernel)
    if weight.is_contiguous():
        rows = weight.flatten(1)
    else:  # channels last: the few means are copied rather than the weights
        rows, means = weight.movedim(1, -1).flatten(1), means.movedim(1, -1)
    if groups == 1:
        found = torch.mv(rows, means.flatten())
    else:
        found = torch.bmm(rows.unflatten(0, (groups, -1)), means.reshape(groups, -1, 1)).flatten()
    return (found if conv.bias is None else found + conv.bias).unsqueeze(0)


def _seen(x: Tensor, windows: tuple[Windows, ...]) -> Tensor:
    """Average what each place of a kernel sees: ``(C_in, *kernel)``."""
    dims = range(1, x.dim() - 1)
    if all(w.kernel == 1 and not w.low and not w.high for w in windows):
        seen: Any = (0, slice(None), *(slice(None, None, w.stride) for w in windows))
        return x[seen].mean(dim=tuple(dims), keepdim=True)
    rows = [_averaging(window, x.dtype, x.device) for window in windows]
    # In the order of memory: the first product reads the image, the others what is left of it.
    if is_last(x) and not x.is_contiguous():
        means = x[0].movedim(0, -1)
        for dim, each in enumerate(rows):
            means = _contract(means, each, dim)
        return means.movedim(-1, 0)
    means = x[0]
    for dim in reversed(dims):
        means = _contract(means, rows[dim - 1], dim)
    return means


def _contract(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Multiply one dimension of ``x`` by a matrix ``(kernel, size)``."""
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    if not after:
        return torch.matmul(x, rows.t())
    parts = x.reshape(prod(before), x.shape[dim], prod(after))
    return torch.matmul(rows, parts).reshape(*before, len(rows), *after)


@lru_cache(maxsize=512)
def _averaging(windows: Windows, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix ``(kernel, size)`` that averages what each place of a kernel sees."""
    size, kernel, stride, dilation, low, _ = windows
    found = [[0.0] * size for _ in range(kernel)]
    for place, row in enumerate(found):
        for window in range(windows.number):
            position = window * stride + place * dilation - low
            if 0 <= position < size:
                row[position] = 1 / windows.number
    return torch.tensor(found, dtype=torch.float64).to(device, dtype)
