"""The launches of Triton kernels over feature maps of one kind, each prepared once.

On a fast GPU a network waits for the CPU to launch its kernels. What a launch needs besides
addresses depends on the map's device, dtype, sizes and layout, and on few settings.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, cuda

from composer_attn.ops.activations import Activation
from composer_attn.ops.backends.activated_triton_kernels import (
    _activate,
    _activated_gradient,
    _activated_means,
    _activated_sums,
)
from composer_attn.ops.backends.launch import ALIGNED, Call
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.tile_kernels import (
    SUMS_OF_FIVE,
    Sizes,
    reduction,
    sizes_of,
    writing,
)
from composer_attn.ops.backends.triton_kernels import (
    _affine,
    _gradient_sums,
    _input_gradient,
    _moments,
)

_Found = TypeVar("_Found")
_HERE = nullcontext()


class MapLaunches:
    """What all maps of one kind share.

    Attributes:
        device: index of the device, or -1 for the CPU.
        dtype: dtype of the map.
        sizes: numbers of samples, channels, positions.
        last: whether it is channels last, not NCHW.
        of_numbers: dtype of the ``(N, C)`` numbers.
    """

    def __init__(self, device: int, dtype: torch.dtype, sizes: Sizes, last: bool):
        self.device, self.dtype, self.sizes, self.last = device, dtype, sizes, last
        self.of_numbers = statistics_dtype(torch.empty(0, dtype=dtype))
        self.itemsize = self.of_numbers.itemsize
        self._found: dict[tuple, Any] = {}

    def once(self, function: Callable[..., _Found], *arguments: Any) -> _Found:
        """Return ``function(self, *arguments)``, called only the first time."""
        key = (function, *arguments)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = function(self, *arguments)
        return found

    def offsets(self, *counts: int) -> tuple[int, ...]:
        """Return where arrays of so many numbers begin, one after another, and where they end.

        In numbers, and such that all of them are aligned.
        """
        found, step = [0], ALIGNED // self.itemsize
        for count in counts:
            found.append(found[-1] + -(-count // step) * step)
        return tuple(found)

    def here(self) -> AbstractContextManager:
        """Return a context in which the map's device is the current one."""
        if self.device < 0 or self.device == cuda.current_device():
            return _HERE
        return cuda.device(self.device)


def launches_of(x: Tensor, last: bool) -> MapLaunches:
    """Return the launches for a dense feature map ``(N, C, *spatial)``."""
    return _launches(x.get_device(), x.dtype, sizes_of(x), last)


_launches = lru_cache(maxsize=4096)(MapLaunches)


def addresses(base: Tensor, offsets: tuple[int, ...]) -> list[int]:
    """Return the addresses of numbers in a tensor, given their offsets."""
    start, size = base.data_ptr(), base.element_size()
    return [start + size * each for each in offsets]


def pointer(tensor: Tensor | None) -> int:
    """Return the address of a tensor, or 0."""
    return 0 if tensor is None else tensor.data_ptr()


def moments(of: MapLaunches) -> Call:
    """Prepare mean and variance, given ``x, mean, variance``."""
    return reduction(_moments, 1, of.sizes, of.last, of.dtype.itemsize)


def affine(of: MapLaunches, line: bool, joined: bool, relu: bool) -> Call:
    """Prepare :func:`.reference.affine`, given ``x, scale, shift, shortcut, y``."""
    return writing(_affine, of.sizes, of.last, LINE=line, JOINED=joined, RELU=relu)


def gradient_sums(of: MapLaunches, line: bool, computed: bool, output: bool) -> Call:
    """Prepare :func:`.reference.gradient_sums`.

    The call takes ``dy, x, centre, scale, shift, y, g, first_sum, second_sum``.
    """
    maps, flags = 4 if output else 2, {"LINE": line, "COMPUTED": computed, "OUTPUT": output}
    return reduction(_gradient_sums, maps, of.sizes, of.last, of.dtype.itemsize, **flags)


def input_gradient(of: MapLaunches, line: bool, masked: bool, spread: bool) -> Call:
    """Prepare :func:`.reference.input_gradient`.

    The call takes ``dy, x, slope, mean, d_mean, d_variance, shift, dx``.
    """
    flags = {"LINE": line, "MASKED": masked, "SPREAD": spread}
    return writing(_input_gradient, of.sizes, of.last, **flags)


def activated_means(of: MapLaunches, activation: Activation) -> Call:
    """Prepare the means of an activation, given ``x, scale, shift, mean``."""
    flags = _flags(activation)
    return reduction(_activated_means, 1, of.sizes, of.last, of.dtype.itemsize, **flags)


def activate(of: MapLaunches, activation: Activation, attended: bool, joined: bool) -> Call:
    """Prepare an activation with attention, given ``x, scale, shift, s, shortcut, y``."""
    flags = {"ATTENDED": attended, "JOINED": joined}
    return writing(_activate, of.sizes, of.last, **_flags(activation), **flags)


def activated_sums(of: MapLaunches, activation: Activation, attended: bool, gate: int) -> Call:
    """Prepare the sums of a gradient over space, the third followed by the gradient of a gate.

    The call takes ``dy, x, centre, scale, shift, s, of_z, of_zx, of_s, of_one, of_x``.
    """
    flags = {"ATTENDED": attended, "GATE": gate}
    return reduction(
        _activated_sums, SUMS_OF_FIVE if attended else 2, of.sizes, of.last, of.dtype.itemsize,
        **_flags(activation), **flags,
    )  # fmt: skip


def activated_gradient(
    of: MapLaunches, activation: Activation, attended: bool, spread: bool
) -> Call:
    """Prepare the gradient of a map.

    The call takes ``dy, x, scale, shift, s, d_m, mean, d_mean, d_variance, dx``, where ``d_m`` is
    the gradient of the means that the scales are of.
    """
    flags = {"ATTENDED": attended, "SPREAD": spread}
    return writing(_activated_gradient, of.sizes, of.last, **_flags(activation), **flags)


def _flags(activation: Activation) -> dict[str, Any]:
    return {"PHI": activation.name, "ALPHA": activation.alpha, "LINE": True}
