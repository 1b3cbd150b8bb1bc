"""Attention of a feature map, and a shift, in place: one call of C++, for evaluation.

Between the passes are layers of a few thousand weights. For a single image, torch takes longer to
call them than to compute them (``python -m benchmarks.inference --variants folded``).
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

import torch
from torch import Tensor

from composer_attn.ops.backends.cpp import FOLDER, GATES, SIZES, Function, functions, threads
from composer_attn.ops.backends.cpp_build import build
from composer_attn.ops.backends.layout import is_last

DTYPES = (torch.float32, torch.float64)
# With fewer values, waking other threads takes longer than both passes.
_ALONE = 1 << 16
_ARGUMENTS = {
    "excite": [ctypes.c_void_p] * 8
    + [ctypes.c_int64] * 2
    + [ctypes.c_int]
    + SIZES
}  # fmt: skip


@cache
def load() -> dict[tuple[str, torch.dtype], Function]:
    """Return the function by name and dtype, building it if necessary."""
    return functions(build(FOLDER / "excited.cpp"), _ARGUMENTS, DTYPES)


def prepare(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    gate: str,
    identity: bool,
    inverse: Tensor | None,
    post: Tensor | None,
    shift: Tensor,
) -> Callable[[Tensor], bool] | None:
    """Return a function that replaces ``x`` by ``gate(logits(inverse mean(x))) post x + shift``.

    Args:
        x: a feature map ``(N, C, *spatial)``, of float32 or float64.
        parameters: weight and bias of two linear layers with a ReLU between them; or the weight
            ``(1, 1, k)`` of a convolution along the channels. The function holds their addresses:
            it must not be called when one of them has moved.
        gate: name of the gate.
        identity: whether the gate is that of ``start="identity"``.
        inverse: factor of the means, ``(C,)``; None if it is 1.
        post: factor of the scales, ``(C,)``; None if it is 1.
        shift: ``(C,)``.

    Returns:
        The function, which returns False, and does nothing, if a map has another dtype, layout or
        number of channels; None if a tensor has another dtype, layout or shape than is taken here.
    """
    if not _fit(x, parameters, (inverse, post, shift)):
        return None
    first, *others = cast(tuple[Tensor, ...], parameters)
    hidden, size = (len(first), 0) if others else (0, first.numel())
    layers = (first, *others) if others else (first, None, None, None)
    addresses = [t if t is None else t.data_ptr() for t in (inverse, *layers, post, shift)]
    kind = GATES["identity" if identity else "paper", gate]
    fixed = (*addresses, hidden, size, kind)
    function, dtype, channels = load()["excite", x.dtype], x.dtype, x.shape[1]

    def run(x: Tensor) -> bool:
        last = not x.is_contiguous()
        count = x.numel()
        if x.dtype is not dtype or x.shape[1] != channels or (last and not is_last(x)):
            return False
        if count:
            rows = x.shape[0] * channels
            of_map = (x.shape[0], channels, count // rows, last, threads(count, _ALONE))
            function(x.data_ptr(), *fixed, *of_map)
        return True

    return run


def _fit(
    x: Tensor, parameters: Sequence[Tensor | None], of_channels: Sequence[Tensor | None]
) -> bool:
    """Return whether the memory of all tensors is as the function takes it."""
    channels = x.shape[1]
    shapes: list[tuple[int, ...]] = [(channels,)] * len(of_channels)
    first = parameters[0]
    if len(parameters) == 4 and first is not None:
        hidden = len(first)
        shapes += [(hidden, channels), (hidden,), (channels, hidden), (channels,)]
    elif first is not None:
        shapes += [(1, 1, first.numel())]
    given = (*of_channels, *parameters)
    return len(given) == len(shapes) and all(
        each is None or (each.shape == shape and each.dtype is x.dtype and each.is_contiguous())
        for each, shape in zip(given, shapes, strict=True)
    )
