"""The four passes on CUDA, as Triton kernels.

A program takes ``BC`` channels of one sample: all positions in a reduction, ``BL`` of them in a
map. The two layouts differ in which of the two strides is 1; nothing is tuned at run time, so that
a kernel is compiled once for each layout, dtype and size of tile, not for each shape.
"""
# Letters of the equations, and Triton's constants in capitals.
# ruff: noqa: N803, N806

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.head_kernels import (  # noqa: F401
    convolve,
    convolve_gradient,
    normalization,
    normalization_gradient,
)
from composer_attn.ops.launch import ceil_divide, launch, next_power_of_2
from composer_attn.ops.layout import dense, empty_numbers, like, numbers
from composer_attn.ops.passes import statistics_dtype

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_WARPS = 8
# Elements of a tile: 16 a thread keep enough loads in flight, and fit the registers.
_TILE = 4096
# Programs of one warp that keep a GPU busy.
_ENOUGH = 2048
# Offsets within a sample are 32 bits wide where that is enough.
_WIDE = 2**31


def load() -> None:
    """Raise unless kernels can run."""
    if not (torch.cuda.is_available() or _INTERPRETED):
        raise RuntimeError("no CUDA device is available")


def supports(x: Tensor) -> bool:
    """Say whether the passes take such a feature map."""
    return x.dtype in _DTYPES and (x.is_cuda or _INTERPRETED)


@triton.jit
def _tile(
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
def _offsets(c, positions, C, L, LAST: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        positions = positions.to(tl.int64)
    if LAST:
        return c[:, None] + positions[None, :] * C
    return c[:, None] * L + positions[None, :]


@triton.jit
def _moments(
    x, mean, variance, C, L,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = mean.dtype.element_ty
    start, row, c, _ = _tile(L, C, LAST, WIDE, BC, BL, False)
    middle = c + (L // 2) * C if LAST else c * L + L // 2
    shift = tl.load(x + start + middle, mask=c < C, other=0).to(S)
    shift = tl.where(tl.abs(shift) < float("inf"), shift, 0)
    first = tl.zeros([BC, BL], S)
    second = tl.zeros([BC, BL], S)
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        value = tl.load(x + start + _offsets(c, at, C, L, LAST, WIDE), mask=inside, other=0).to(S)
        shifted = tl.where(inside, value - shift[:, None], 0)
        first += shifted
        second += shifted * shifted
    step = tl.sum(first, 1) / L
    spread = tl.sum(second, 1) / L - step * step
    tl.store(mean + row + c, shift + step, mask=c < C)
    # Not tl.maximum, which makes NaN 0.
    tl.store(variance + row + c, tl.where(spread < 0, 0, spread), mask=c < C)


@triton.jit
def _affine(
    x, scale, shift, shortcut, y, C, L,
    JOINED: tl.constexpr, RELU: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = scale.dtype.element_ty
    start, row, c, l0 = _tile(L, C, LAST, WIDE, BC, BL, True)
    at = l0 + tl.arange(0, BL)
    inside = (c < C)[:, None] & (at < L)[None, :]
    offsets = start + _offsets(c, at, C, L, LAST, WIDE)
    a = tl.load(scale + row + c, mask=c < C, other=0)[:, None]
    b = tl.load(shift + row + c, mask=c < C, other=0)[:, None]
    out = tl.load(x + offsets, mask=inside, other=0).to(S) * a + b
    if JOINED:
        out += tl.load(shortcut + offsets, mask=inside, other=0).to(S)
    if RELU:
        out = tl.where(out < 0, 0, out)
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(
    dy, x, centre, scale, shift, y, g, first_sum, second_sum, C, L,
    COMPUTED: tl.constexpr, OUTPUT: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = centre.dtype.element_ty
    start, row, c, _ = _tile(L, C, LAST, WIDE, BC, BL, False)
    k = tl.load(centre + row + c, mask=c < C, other=0)[:, None]
    first = tl.zeros([BC, BL], S)
    second = tl.zeros([BC, BL], S)
    if COMPUTED:
        a = tl.load(scale + row + c, mask=c < C, other=0)[:, None]
        b = tl.load(shift + row + c, mask=c < C, other=0)[:, None]
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        offsets = start + _offsets(c, at, C, L, LAST, WIDE)
        grad = tl.load(dy + offsets, mask=inside, other=0).to(S)
        value = tl.load(x + offsets, mask=inside, other=0).to(S)
        if COMPUTED:
            grad = tl.where(value * a + b <= 0, 0, grad)
        if OUTPUT:
            grad = tl.where(tl.load(y + offsets, mask=inside, other=0).to(S) <= 0, 0, grad)
            tl.store(g + offsets, grad.to(g.dtype.element_ty), mask=inside)
        first += grad
        second += grad * (value - k)
    tl.store(first_sum + row + c, tl.sum(first, 1), mask=c < C)
    tl.store(second_sum + row + c, tl.sum(second, 1), mask=c < C)


@triton.jit
def _input_gradient(
    dy, x, slope, mean, d_mean, d_variance, shift, dx, C, L,
    MASKED: tl.constexpr, SPREAD: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = slope.dtype.element_ty
    start, row, c, l0 = _tile(L, C, LAST, WIDE, BC, BL, True)
    at = l0 + tl.arange(0, BL)
    inside = (c < C)[:, None] & (at < L)[None, :]
    offsets = start + _offsets(c, at, C, L, LAST, WIDE)
    grad = tl.load(dy + offsets, mask=inside, other=0).to(S)
    of_dy = tl.load(slope + row + c, mask=c < C, other=0)[:, None]
    rest = tl.load(d_mean + row + c, mask=c < C, other=0)[:, None] / L
    if MASKED or SPREAD:
        value = tl.load(x + offsets, mask=inside, other=0).to(S)
    if MASKED:
        b = tl.load(shift + row + c, mask=c < C, other=0)[:, None]
        grad = tl.where(value * of_dy + b <= 0, 0, grad)
    if SPREAD:
        of_x = tl.load(d_variance + row + c, mask=c < C, other=0)[:, None] * 2 / L
        rest -= of_x * tl.load(mean + row + c, mask=c < C, other=0)[:, None]
        rest += value * of_x
    tl.store(dx + offsets, (grad * of_dy + rest).to(dx.dtype.element_ty), mask=inside)


def _reduce(
    kernel, maps: int, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool
) -> None:
    """Start a kernel that sums over space: a program for each sample and block of channels."""
    samples, channels, positions = sizes = _sizes(x)
    across, along, warps, stages = _reduction_tile(*sizes, last, x.element_size(), maps)
    programs = samples * ceil_divide(channels, across)
    constants = {"LAST": last, "WIDE": channels * positions >= _WIDE, "BC": across, "BL": along}
    _run(kernel, programs, x, arguments, warps, **flags, **constants, STAGES=stages)


def _map(kernel, x: Tensor, last: bool, *arguments: Tensor | None, **flags: bool) -> None:
    """Start a kernel that writes a map: a program for each of its tiles."""
    samples, channels, positions = _sizes(x)
    if last:
        across = min(64, next_power_of_2(channels))
        along = _TILE // 64
    else:
        along = min(1024, next_power_of_2(positions))
        across = min(_TILE // along, next_power_of_2(channels))
    programs = samples * ceil_divide(channels, across) * ceil_divide(positions, along)
    constants = {"LAST": last, "WIDE": channels * positions >= _WIDE, "BC": across, "BL": along}
    _run(kernel, programs, x, arguments, _WARPS, **flags, **constants)


def _reduction_tile(
    samples: int, channels: int, positions: int, last: bool, itemsize: int, maps: int
) -> tuple[int, ...]:
    """Choose channels and positions of a tile, warps of a program, and loads that run ahead.

    In channels last as measured on an H100 in bfloat16, ``python -m benchmarks.passes``: a sum over
    few positions is soon done, and adding up what several warps hold would take longer. ``maps``
    are those that a kernel reads and writes.
    """
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


def _run(kernel, programs: int, x: Tensor, arguments, warps: int, **constants: int) -> None:
    """Start a kernel; ``x`` stands in for tensors that are absent, which it does not touch."""
    tensors = tuple(x if each is None else each for each in arguments)
    launch(kernel, programs, tensors, _sizes(x)[1:], warps, **constants)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over space (:func:`composer_attn.ops.passes.moments`)."""
    x, last = dense(x)
    mean, variance = (empty_numbers(x, statistics_dtype(x)) for _ in range(2))
    _reduce(_moments, 1, x, last, x, mean, variance)
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute ``scale x + shift [+ shortcut]`` (:func:`composer_attn.ops.passes.affine`)."""
    x, last = dense(x)
    scale, shift = _numbers(x, scale, shift)
    y = torch.empty_like(x)
    joined = shortcut is not None
    shortcut = like(shortcut, last) if joined else None
    _map(_affine, x, last, x, scale, shift, shortcut, y, JOINED=joined, RELU=relu)
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, centre: Tensor, mask: tuple[Tensor, Tensor] | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum a gradient over space (:func:`composer_attn.ops.passes.gradient_sums`)."""
    x, last = dense(x)
    dy = like(dy, last)
    output, computed = isinstance(mask, Tensor), isinstance(mask, tuple)
    centre, scale, shift = _numbers(x, centre, *(mask if computed else (None, None)))
    first, second = (empty_numbers(x, centre.dtype) for _ in range(2))
    y, g = (like(mask, last), torch.empty_like(x)) if output else (None, dy)
    tensors = (dy, x, centre, scale, shift, y, g, first, second)
    _reduce(_gradient_sums, 4 if output else 2, x, last, *tensors, COMPUTED=computed, OUTPUT=output)
    return first, second, g


def input_gradient(
    dy: Tensor,
    x: Tensor,
    slope: Tensor,
    mean: Tensor,
    d_mean: Tensor,
    d_variance: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """Write the gradient of ``x`` (:func:`composer_attn.ops.passes.input_gradient`)."""
    x, last = dense(x)
    dy = like(dy, last)
    dx = torch.empty_like(x)
    given = _numbers(x, slope, mean, d_mean, d_variance, shift)
    flags = {"MASKED": shift is not None, "SPREAD": d_variance is not None}
    _map(_input_gradient, x, last, dy, x, *given, dx, **flags)
    return dx


def _numbers(x: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    dtype = statistics_dtype(x)
    return [numbers(value, x, dtype) for value in values]
