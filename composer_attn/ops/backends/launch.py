"""Starts Triton kernels with little Python: what a call has in common with another is looked up.

Triton describes every argument anew at each call, which takes a CPU longer than many a kernel takes
a GPU. Here a call of a kind that was seen before goes straight to the compiled kernel.
"""

from collections.abc import Callable

import triton
from torch import Tensor, cuda

# From 3.3 on, a compiled kernel takes all arguments, constants among them.
_DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
_launchers: dict[tuple, Callable[..., None]] = {}


# Triton's own of these are made for its compiler, and slow outside of it.
def ceil_divide(a: int, b: int) -> int:
    """Divide, and round up.

    Example:
        >>> ceil_divide(7, 2)
        4
    """
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is not below a positive number.

    Example:
        >>> next_power_of_2(49), next_power_of_2(64)
        (64, 64)
    """
    return 1 << (n - 1).bit_length()


def launch(
    kernel: triton.JITFunction,
    programs: int,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    warps: int,
    **constants: bool | float | int | str,
) -> None:
    """Start a kernel on the current stream of the device that its tensors are on.

    Args:
        kernel: takes tensors, then numbers, then constants; a function of a module.
        programs: how many, on one axis.
        tensors: all on one device.
        numbers: the sizes, whose special values (1, multiples of 16) a kernel is compiled for.
        warps: of a program.
        constants: values of its ``tl.constexpr`` parameters, in their order.
    """
    grid = (programs, 1, 1)
    if not _DIRECT or not tensors[0].is_cuda:  # the latter under Triton's interpreter
        with cuda.device_of(tensors[0]):
            kernel[grid](*tensors, *numbers, num_warps=warps, **constants)
        return
    device = tensors[0].get_device()
    if device != cuda.current_device():
        with cuda.device(device):
            launch(kernel, programs, tensors, numbers, warps, **constants)
        return
    pointers = [tensor.data_ptr() for tensor in tensors]
    key = (
        id(kernel),  # whose own hash takes as long as all the others
        device,
        programs,
        warps,
        numbers,
        *constants.values(),
        *[tensor.dtype for tensor in tensors],
        *[pointer % 16 == 0 for pointer in pointers],
    )
    launcher = _launchers.get(key)
    if launcher is None:
        compiled = kernel[grid](*tensors, *numbers, num_warps=warps, **constants)
        _launchers[key] = compiled[grid]
        return
    launcher(*pointers, *numbers, *constants.values())
