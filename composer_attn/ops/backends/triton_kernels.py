"""The four passes as Triton kernels for CUDA.

A program handles ``BC`` channels of one sample: all positions in a reduction, ``BL`` of them when
writing a map. The two layouts differ in which of the two strides is 1. Nothing is tuned at run
time, so that a kernel is compiled once per layout, dtype and tile size, not per shape.
"""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.backends.convolution_kernels import convolve, convolve_gradient
from composer_attn.ops.backends.layout import dense, empty_numbers, like, numbers
from composer_attn.ops.backends.norm_kernels import normalization, normalization_gradient
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.tile_kernels import (
    load,
    offsets_of,
    reduce_map,
    row_of,
    tile_of,
    write_map,
)

__all__ = [
    "affine",
    "convolve",
    "convolve_gradient",
    "gradient_sums",
    "input_gradient",
    "load",
    "moments",
    "normalization",
    "normalization_gradient",
]


@triton.jit
def _moments(
    x, mean, variance, C, L,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = mean.dtype.element_ty
    start, row, c, _ = tile_of(L, C, LAST, WIDE, BC, BL, False)
    middle = c + (L // 2) * C if LAST else c * L + L // 2
    shift = tl.load(x + start + middle, mask=c < C, other=0).to(S)
    shift = tl.where(tl.abs(shift) < float("inf"), shift, 0)
    first = tl.zeros([BC, BL], S)
    second = tl.zeros([BC, BL], S)
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        value = tl.load(x + start + offsets_of(c, at, C, L, LAST, WIDE), mask=inside, other=0).to(S)
        shifted = tl.where(inside, value - shift[:, None], 0)
        first += shifted
        second += shifted * shifted
    step = tl.sum(first, 1) / L
    spread = tl.sum(second, 1) / L - step * step
    tl.store(mean + row + c, shift + step, mask=c < C)
    # Not tl.maximum, which would turn NaN into 0.
    tl.store(variance + row + c, tl.where(spread < 0, 0, spread), mask=c < C)


@triton.jit
def _affine(
    x, scale, shift, shortcut, y, C, L,
    LINE: tl.constexpr, JOINED: tl.constexpr, RELU: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = scale.dtype.element_ty
    start, row, c, l0 = tile_of(L, C, LAST, WIDE, BC, BL, True)
    at = l0 + tl.arange(0, BL)
    inside = (c < C)[:, None] & (at < L)[None, :]
    offsets = start + offsets_of(c, at, C, L, LAST, WIDE)
    own = row_of(row, LINE)
    a = tl.load(scale + own + c, mask=c < C, other=0)[:, None]
    b = tl.load(shift + own + c, mask=c < C, other=0)[:, None]
    out = tl.load(x + offsets, mask=inside, other=0).to(S) * a + b
    if JOINED:
        out += tl.load(shortcut + offsets, mask=inside, other=0).to(S)
    if RELU:
        out = tl.where(out < 0, 0, out)
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_sums(
    dy, x, centre, scale, shift, y, g, first_sum, second_sum, C, L,
    LINE: tl.constexpr, COMPUTED: tl.constexpr, OUTPUT: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = centre.dtype.element_ty
    start, row, c, _ = tile_of(L, C, LAST, WIDE, BC, BL, False)
    own = row_of(row, LINE)
    k = tl.load(centre + own + c, mask=c < C, other=0)[:, None]
    first = tl.zeros([BC, BL], S)
    second = tl.zeros([BC, BL], S)
    if COMPUTED:
        a = tl.load(scale + own + c, mask=c < C, other=0)[:, None]
        b = tl.load(shift + own + c, mask=c < C, other=0)[:, None]
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        offsets = start + offsets_of(c, at, C, L, LAST, WIDE)
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
    LINE: tl.constexpr, MASKED: tl.constexpr, SPREAD: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = slope.dtype.element_ty
    start, row, c, l0 = tile_of(L, C, LAST, WIDE, BC, BL, True)
    at = l0 + tl.arange(0, BL)
    inside = (c < C)[:, None] & (at < L)[None, :]
    offsets = start + offsets_of(c, at, C, L, LAST, WIDE)
    grad = tl.load(dy + offsets, mask=inside, other=0).to(S)
    own = row_of(row, LINE)
    of_dy = tl.load(slope + own + c, mask=c < C, other=0)[:, None]
    rest = tl.load(d_mean + own + c, mask=c < C, other=0)[:, None] / L
    if MASKED or SPREAD:
        value = tl.load(x + offsets, mask=inside, other=0).to(S)
    if MASKED:
        b = tl.load(shift + own + c, mask=c < C, other=0)[:, None]
        grad = tl.where(value * of_dy + b <= 0, 0, grad)
    if SPREAD:
        of_x = tl.load(d_variance + own + c, mask=c < C, other=0)[:, None] * 2 / L
        rest -= of_x * tl.load(mean + own + c, mask=c < C, other=0)[:, None]
        rest += value * of_x
    tl.store(dx + offsets, (grad * of_dy + rest).to(dx.dtype.element_ty), mask=inside)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over space (:func:`.reference.moments`)."""
    x, last = dense(x)
    mean, variance = empty_numbers(x, statistics_dtype(x), 2)
    reduce_map(_moments, 1, x, last, x, mean, variance)
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute ``scale x + shift [+ shortcut]`` (:func:`.reference.affine`)."""
    x, last = dense(x)
    scale, shift = numbers(x, statistics_dtype(x), scale, shift)
    y, joined = torch.empty_like(x), None if shortcut is None else like(shortcut, last)
    flags = {"LINE": False, "JOINED": joined is not None, "RELU": relu}
    write_map(_affine, x, last, x, scale, shift, joined, y, **flags)
    return y


def gradient_sums(
    dy: Tensor, x: Tensor, centre: Tensor, mask: tuple[Tensor, Tensor] | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum a gradient over space (:func:`.reference.gradient_sums`)."""
    x, last = dense(x)
    dy = like(dy, last)
    dtype = statistics_dtype(x)
    given = numbers(x, dtype, centre, *(mask if isinstance(mask, tuple) else (None, None)))
    first, second = empty_numbers(x, dtype, 2)
    y, g = (like(mask, last), torch.empty_like(x)) if isinstance(mask, Tensor) else (None, dy)
    tensors = (dy, x, *given, y, g, first, second)
    flags = {"LINE": False, "COMPUTED": isinstance(mask, tuple), "OUTPUT": y is not None}
    reduce_map(_gradient_sums, 2 if y is None else 4, x, last, *tensors, **flags)
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
    """Write the gradient of ``x`` (:func:`.reference.input_gradient`)."""
    x, last = dense(x)
    dy, dx = like(dy, last), torch.empty_like(x)
    given = numbers(x, statistics_dtype(x), slope, mean, d_mean, d_variance, shift)
    flags = {"LINE": False, "MASKED": shift is not None, "SPREAD": d_variance is not None}
    write_map(_input_gradient, x, last, dy, x, *given, dx, **flags)
    return dx
