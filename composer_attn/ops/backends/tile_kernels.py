"""Shared code of the Triton kernels over feature maps: tiling and launching."""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.backends.launch import Call, ceil_divide, launch, next_power_of_2

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WARPS = 8
# Elements of a tile: 16 per thread keep enough loads in flight, and fit the registers.
_TILE = 4096
# Number of one-warp programs that keep a GPU busy.
_ENOUGH = 2048
# The value of ``maps`` for a kernel that computes five sums.
SUMS_OF_FIVE = 5
# Offsets within a sample have 32 bits if that suffices.
_WIDE = 2**31
# Numbers of samples, channels and positions.
Sizes = tuple[int, int, int]
_Constants = dict[str, float | str]


def load() -> None:
    """Raise unless kernels can run."""
    if not (torch.cuda.is_available() or _INTERPRETED):
        raise RuntimeError("no CUDA device is available")


@triton.jit
def tile_of(
    L, C, LAST: tl.constexpr, WIDE: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return a sample's offsets in the map and in ``(N, C)``, its channels and first position.

    Consecutive programs access consecutive memory. The grid has a single axis, since the others are
    limited to 65,535 programs.
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
    """Return the offsets of a tile within a sample."""
    if WIDE:
        positions = positions.to(tl.int64)
    if LAST:
        return c[:, None] + positions[None, :] * C
    return c[:, None] * L + positions[None, :]


@triton.jit
def row_of(row, LINE: tl.constexpr):
    """Return the offset of a sample's numbers: 0 if they are a line, the same for all samples."""
    own = row
    if LINE:
        own = row * 0
    return own


def reduce_map(
    kernel, maps: int, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool | float | str
) -> None:
    """Launch a kernel that sums over space, with one program per sample and block of channels."""
    sizes = sizes_of(x)
    programs, warps, constants = _reduction(sizes, last, x.element_size(), maps)
    _run(kernel, programs, x, sizes, arguments, warps, **flags, **constants)


def write_map(
    kernel, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool | float | str
) -> None:
    """Launch a kernel that writes a feature map, with one program per tile."""
    sizes = sizes_of(x)
    programs, constants = _writing(sizes, last)
    _run(kernel, programs, x, sizes, arguments, _WARPS, **flags, **constants)


def reduction(
    kernel, maps: int, sizes: Sizes, last: bool, itemsize: int, **flags: bool | float | str
) -> Call:
    """Prepare :func:`reduce_map` for maps of these sizes."""
    programs, warps, constants = _reduction(sizes, last, itemsize, maps)
    return Call(kernel, programs, sizes[1:], warps, **flags, **constants)


def writing(kernel, sizes: Sizes, last: bool, **flags: bool | float | str) -> Call:
    """Prepare :func:`write_map` for maps of these sizes."""
    programs, constants = _writing(sizes, last)
    return Call(kernel, programs, sizes[1:], _WARPS, **flags, **constants)


def _reduction(sizes: Sizes, last: bool, itemsize: int, maps: int) -> tuple[int, int, _Constants]:
    """Return the number of programs, their warps, and the constants of a sum over space."""
    across, along, warps, stages = _reduction_tile(*sizes, last, itemsize, maps)
    constants = _constants(sizes, last, across, along) | {"STAGES": stages}
    return sizes[0] * ceil_divide(sizes[1], across), warps, constants


def _writing(sizes: Sizes, last: bool) -> tuple[int, _Constants]:
    """Return the number of programs and the constants of a kernel that writes a map."""
    samples, channels, positions = sizes
    if last:
        across = min(64, next_power_of_2(channels))
        along = _TILE // 64
    else:
        along = min(1024, next_power_of_2(positions))
        across = min(_TILE // along, next_power_of_2(channels))
    programs = samples * ceil_divide(channels, across) * ceil_divide(positions, along)
    return programs, _constants(sizes, last, across, along)


def _reduction_tile(
    samples: int, channels: int, positions: int, last: bool, itemsize: int, maps: int
) -> tuple[int, ...]:
    """Choose a tile's channels and positions, the warps per program, and the pipeline stages.

    For channels last as measured on an H100 in bfloat16, by ``python -m benchmarks.passes``: a sum
    over few positions is short, and a reduction across several warps would take longer. ``maps`` is
    the number of feature maps that the kernel reads and writes.
    """
    if maps == SUMS_OF_FIVE:  # five of a tile's size stay in registers
        along = 16 if last else min(1024, next_power_of_2(positions))
        return min(64 if last else 1024 // along, next_power_of_2(channels)), along, 4, 1
    if not last:
        along = min(1024, next_power_of_2(positions))
        return min(_TILE // along, next_power_of_2(channels)), along, _WARPS, 1
    across = min(64, next_power_of_2(channels))
    many = samples * ceil_divide(channels, across) >= _ENOUGH
    if itemsize > 4 or (maps > 2 and (positions > 64 or not many)):  # more would not fit registers
        return across, 64, _WARPS, 1
    if positions >= 1024:
        return across, 64, _WARPS, 3
    if many and positions <= (1023 if maps == 1 else 256):
        return across, 16, 1, 1
    return across, 64, 4, 1


def sizes_of(x: Tensor) -> Sizes:
    """Return the numbers of samples, channels and positions."""
    samples, channels = x.shape[:2]
    return samples, channels, x.numel() // (samples * channels)


def _constants(sizes: Sizes, last: bool, across: int, along: int) -> _Constants:
    """Return the constants of all kernels over feature maps, in their order."""
    _, channels, positions = sizes
    return {"LAST": last, "WIDE": channels * positions >= _WIDE, "BC": across, "BL": along}


def _run(
    kernel, programs: int, x: Tensor, sizes: Sizes, arguments, warps: int,
    **constants: float | str,
) -> None:  # fmt: skip
    """Launch a kernel; ``x`` is a placeholder for absent tensors, which it does not access."""
    tensors = tuple(x if each is None else each for each in arguments)
    launch(kernel, programs, tensors, sizes[1:], warps, **constants)
