"""Launch Triton kernels with little Python overhead, by caching compiled kernels.

Triton inspects every argument at each call, which takes longer on the CPU than many kernels take on
the GPU. Here a call with known properties goes straight to the compiled kernel.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import triton
from torch import Tensor, cuda

# From Triton 3.3 on, a compiled kernel takes all arguments, including constants.
_DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
# The alignment that kernels are specialized on, in bytes.
ALIGNED = 16
_Launcher = Callable[..., None]
_launchers: dict[tuple, _Launcher] = {}


# Triton's own versions of these are made for its compiler, and slow outside of it.
def ceil_divide(a: int, b: int) -> int:
    """Divide and round up.

    Example:
        >>> ceil_divide(7, 2)
        4
    """
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is at least ``n``, a positive number.

    Example:
        >>> next_power_of_2(49), next_power_of_2(64)
        (64, 64)
    """
    return 1 << (n - 1).bit_length()


def launch(
    kernel: triton.JITFunction,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: tuple[int, ...],
    warps: int,
    **constants: bool | float | int | str,
) -> _Launcher | None:
    """Launch a kernel on the current stream of its tensors' device.

    Args:
        kernel: a module-level kernel that takes tensors, then numbers, then constants.
        programs: number of programs, on a single axis.
        tensors: tensors, all on one device.
        numbers: sizes; kernels are specialized on special values (1, multiples of 16).
        warps: number of warps per program.
        constants: values of the kernel's ``tl.constexpr`` parameters, in order.

    Returns:
        What launches this kernel, if there is a direct way.
    """
    if not _DIRECT or not tensors[0].is_cuda:  # the latter under Triton's interpreter
        with cuda.device_of(tensors[0]):
            kernel[programs, 1, 1](*tensors, *numbers, num_warps=warps, **constants)
        return None
    device = tensors[0].get_device()
    if device != cuda.current_device():
        with cuda.device(device):
            return launch(kernel, programs, tensors, numbers, warps, **constants)
    pointers = [tensor.data_ptr() for tensor in tensors]
    key = (
        id(kernel),  # its own hash takes as long as all the others together
        device,
        programs,
        warps,
        numbers,
        *constants.values(),
        *[tensor.dtype for tensor in tensors],
        *[pointer % ALIGNED == 0 for pointer in pointers],
    )
    launcher = _launchers.get(key)
    if launcher is None:
        compiled = kernel[programs, 1, 1](*tensors, *numbers, num_warps=warps, **constants)
        _launchers[key] = launcher = _launcher(compiled, programs)
    else:
        launcher(_stream_on(device), pointers, (*numbers, *constants.values()))
    return launcher


def _stream_on(device: int) -> int:
    """Return the handle of the current stream, as Triton itself asks for it."""
    return triton.runtime.driver.active.get_current_stream(device)


def _launcher(compiled: Any, programs: int) -> _Launcher:
    """Return what launches a compiled kernel, given a stream, pointers, and other arguments."""
    # ``compiled[grid]`` does the same after looking for profilers' hooks and for the stream.
    begin = partial(compiled.run, programs, 1, 1)
    function, metadata = compiled.function, compiled.packed_metadata

    def run(stream: int, pointers: Sequence[int], rest: tuple) -> None:
        begin(stream, function, metadata, None, None, None, *pointers, *rest)

    return run


class Call:
    """A kernel of which all but the addresses is known: :func:`launch`, at less cost.

    Of two calls, neither the device nor the dtypes may differ. Arguments are those of
    :func:`launch`.
    """

    __slots__ = ("constants", "kernel", "launcher", "numbers", "programs", "rest", "warps")

    def __init__(
        self,
        kernel: triton.JITFunction,
        programs: int,
        numbers: tuple[int, ...],
        warps: int,
        **constants: bool | float | int | str,
    ):
        self.kernel, self.programs, self.numbers = kernel, programs, numbers
        self.warps, self.constants = warps, constants
        self.rest = (*numbers, *constants.values())
        self.launcher: _Launcher | None = None

    def __call__(self, pointers: Sequence[int], holders: Sequence[Tensor]) -> None:
        """Launch it on the current stream of the current device.

        Args:
            pointers: an address for each tensor of the kernel; 0 for one that it does not access.
            holders: tensors that contain the addresses.
        """
        combined = 0
        for each in pointers:
            combined |= each
        aligned = combined % ALIGNED == 0
        if aligned and self.launcher is not None:
            self.launcher(_stream_on(cuda.current_device()), pointers, self.rest)
            return
        found = self.on(*[_at(each, holders) for each in pointers])
        if aligned:
            self.launcher = found

    def on(self, *tensors: Tensor) -> _Launcher | None:
        """Launch it on any tensors (:func:`launch`)."""
        return launch(
            self.kernel, self.programs, tensors, self.numbers, self.warps, **self.constants
        )


def _at(address: int, holders: Sequence[Tensor]) -> Tensor:
    """Return a tensor that begins at an address, within the one of these that contains it."""
    for each in holders:
        offset = (address - each.data_ptr()) // each.element_size()
        if 0 <= offset < each.numel():
            return each.as_strided((each.numel() - offset,), (1,), each.storage_offset() + offset)
    return holders[0]
