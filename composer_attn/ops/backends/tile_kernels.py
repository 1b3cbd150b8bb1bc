"""What the Triton kernels of feature maps share: their tiles, and how they are started."""
# Letters of the equations, and Triton's constants in capitals.
# ruff: noqa: N803

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.backends.launch import ceil_divide, launch, next_power_of_2

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WARPS = 8
# Elements of a tile: 16 a thread keep enough loads in flight, and fit the registers.
_TILE = 4096
# Programs of one warp that keep a GPU busy.
_ENOUGH = 2048
# Stands for the number of maps of a kernel that gathers five sums.
SUMS_OF_FIVE = 5
# Offsets within a sample are 32 bits wide where that is enough.
_WIDE = 2**31


def load() -> None:
    """Raise unless kernels can run."""
    if not (torch.cuda.is_available() or _INTERPRETED):
        raise RuntimeError("no CUDA device is available")


@triton.jit
def tile_of(
    L, C, LAST: tl.constexpr, WIDE: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return a sample's offsets in the map and in ``(N, C)``, then channels and first position.

    Programs that follow each other take memory that does. One axis of the grid holds them all,
    since the others end at 65,535.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    pieces = tl.cdiv(L, BL) if SPLIT else 1
    if LAST:
        block = program % blocks
        piece = program // blocks % pieces
    else:
        piece = program % pieces
        block = program // pieces % blocks
    c = block * BC + tl.arange(0, BC)
    if WIDE:
        c = c.to(tl.int64)
    sample = (program // (blocks * pieces)).to(tl.int64)
    return sample * C * L, sample * C, c, piece * BL


@triton.jit
def offsets_of(c, positions, C, L, LAST: tl.constexpr, WIDE: tl.constexpr):
    """Return where a tile lies in a sample."""
    if WIDE:
        positions = positions.to(tl.int64)
    if LAST:
        return c[:, None] + positions[None, :] * C
    return c[:, None] * L + positions[None, :]


def reduce_map(
    kernel, maps: int, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool | float | str
) -> None:
    """Start a kernel that sums over space: a program for each sample and block of channels."""
    samples, channels, _ = sizes = _sizes(x)
    across, along, warps, stages = _reduction_tile(*sizes, last, x.element_size(), maps)
    programs = samples * ceil_divide(channels, across)
    constants = _constants(sizes, last, across, along) | {"STAGES": stages}
    _run(kernel, programs, x, sizes, arguments, warps, **flags, **constants)


def write_map(
    kernel, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool | float | str
) -> None:
    """Start a kernel that writes a map: a program for each of its tiles."""
    samples, channels, positions = sizes = _sizes(x)
    if last:
        across = min(64, next_power_of_2(channels))
        along = _TILE // 64
    else:
        along = min(1024, next_power_of_2(positions))
        across = min(_TILE // along, next_power_of_2(channels))
    programs = samples * ceil_divide(channels, across) * ceil_divide(positions, along)
    constants = _constants(sizes, last, across, along)
    _run(kernel, programs, x, sizes, arguments, _WARPS, **flags, **constants)


def _reduction_tile(
    samples: int, channels: int, positions: int, last: bool, itemsize: int, maps: int
) -> tuple[int, ...]:
    """Choose channels and positions of a tile, warps of a program, and loads that run ahead.

    In channels last as measured on an H100 in bfloat16, ``python -m benchmarks.passes``: a sum over
    few positions is soon done, and adding up what several warps hold would take longer. ``maps``
    are those that a kernel reads and writes.
    """
    if maps == SUMS_OF_FIVE:  # five of a tile's size stay in registers
        along = 16 if last else min(1024, next_power_of_2(positions))
        return min(64 if last else 1024 // along, next_power_of_2(channels)), along, 4, 1
    if not last:
        along = min(1024, next_power_of_2(positions))
        return min(_TILE // along, next_power_of_2(channels)), along, _WARPS, 1
    across = min(64, next_power_of_2(channels))
    many = samples * ceil_divide(channels, across) >= _ENOUGH
    if itemsize > 4 or (maps > 2 and positions > 64):  # more would not fit the registers
        return across, 64, _WARPS, 1
    if positions >= 1024:
        return across, 64, _WARPS, 3
    if many and positions <= (1023 if maps == 1 else 256):
        return across, 16, 1, 1
    return across, 64, 4, 1


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Return numbers of samples, channels and positions."""
    samples, channels = x.shape[:2]
    return samples, channels, x.numel() // (samples * channels)


def _constants(
    sizes: tuple[int, int, int], last: bool, across: int, along: int
) -> dict[str, float | str]:
    """Return what all kernels of maps are compiled for, in their order."""
    _, channels, positions = sizes
    return {"LAST": last, "WIDE": channels * positions >= _WIDE, "BC": across, "BL": along}


def _run(
    kernel, programs: int, x: Tensor, sizes: tuple[int, int, int], arguments, warps: int,
    **constants: float | str,
) -> None:  # fmt: skip
    """Start a kernel; ``x`` stands in for tensors that are absent, which it does not touch."""
    tensors = tuple(x if each is None else each for each in arguments)
    launch(kernel, programs, tensors, sizes[1:], warps, **constants)
