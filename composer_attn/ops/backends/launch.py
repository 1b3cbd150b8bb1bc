"""Launch Triton kernels with little Python overhead, by caching compiled kernels.

Triton inspects every argument at each call, which takes longer on the CPU than many kernels take on
the GPU. Here a call with known properties goes straight to the compiled kernel.
"""

from collections.abc import Callable

import triton
from torch import Tensor, cuda

# From Triton 3.3 on, a compiled kernel takes all arguments, including constants.
_DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)
_launchers: dict[tuple, Callable[..., None]] = {}


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
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    warps: int,
    **constants: bool | float | int | str,
) -> None:
    """Launch a kernel on the current stream of its tensors' device.

    Args:
        kernel: a module-level kernel that takes tensors, then numbers, then constants.
        programs: number of programs, on a single axis.
        tensors: tensors, all on one device.
        numbers: sizes; kernels are specialized on special values (1, multiples of 16).
        warps: number of warps per program.
        constants: values of the kernel's ``tl.constexpr`` parameters, in order.
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
        id(kernel),  # its own hash takes as long as all the others together
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
