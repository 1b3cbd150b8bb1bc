"""The passes with an activation, as Triton kernels (see :mod:`.triton_kernels`)."""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import tile_kernels
from composer_attn.ops.backends.elementwise_kernels import NO_GATE, gate_gradient, phi
from composer_attn.ops.backends.layout import dense, empty_numbers, like, numbers
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.tile_kernels import (
    SUMS_OF_FIVE,
    offsets_of,
    reduce_map,
    row_of,
    tile_of,
    write_map,
)


def load(activation: str) -> None:
    """Raise unless kernels can run."""
    tile_kernels.load()


@triton.jit
def _activated_means(
    x, scale, shift, mean, C, L,
    PHI: tl.constexpr, ALPHA: tl.constexpr, LINE: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = mean.dtype.element_ty
    start, row, c, _ = tile_of(L, C, LAST, WIDE, BC, BL, False)
    own = row_of(row, LINE)
    a = tl.load(scale + own + c, mask=c < C, other=0)[:, None]
    b = tl.load(shift + own + c, mask=c < C, other=0)[:, None]
    total = tl.zeros([BC, BL], S)
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        value = tl.load(x + start + offsets_of(c, at, C, L, LAST, WIDE), mask=inside, other=0).to(S)
        y, _slope = phi(value * a + b, PHI, ALPHA)
        total += tl.where(inside, y, 0)
    tl.store(mean + row + c, tl.sum(total, 1) / L, mask=c < C)


@triton.jit
def _activate(
    x, scale, shift, excitation, shortcut, y, C, L,
    PHI: tl.constexpr, ALPHA: tl.constexpr, LINE: tl.constexpr, ATTENDED: tl.constexpr,
    JOINED: tl.constexpr,
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
    out, _slope = phi(tl.load(x + offsets, mask=inside, other=0).to(S) * a + b, PHI, ALPHA)
    if ATTENDED:
        out = out * tl.load(excitation + row + c, mask=c < C, other=0)[:, None]
    if JOINED:
        out += tl.load(shortcut + offsets, mask=inside, other=0).to(S)
    tl.store(y + offsets, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _activated_sums(
    dy, x, centre, scale, shift, excitation, of_z, of_zx, of_s, of_one, of_x, C, L,
    PHI: tl.constexpr, ALPHA: tl.constexpr, LINE: tl.constexpr, ATTENDED: tl.constexpr,
    GATE: tl.constexpr,
    LAST: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = centre.dtype.element_ty
    start, row, c, _ = tile_of(L, C, LAST, WIDE, BC, BL, False)
    own = row_of(row, LINE)
    k = tl.load(centre + own + c, mask=c < C, other=0)[:, None]
    a = tl.load(scale + own + c, mask=c < C, other=0)[:, None]
    b = tl.load(shift + own + c, mask=c < C, other=0)[:, None]
    first = tl.zeros([BC, BL], S)
    second = tl.zeros([BC, BL], S)
    if ATTENDED:
        third = tl.zeros([BC, BL], S)
        fourth = tl.zeros([BC, BL], S)
        fifth = tl.zeros([BC, BL], S)
    for l0 in tl.range(0, L, BL, num_stages=STAGES):
        at = l0 + tl.arange(0, BL)
        inside = (c < C)[:, None] & (at < L)[None, :]
        offsets = start + offsets_of(c, at, C, L, LAST, WIDE)
        grad = tl.load(dy + offsets, mask=inside, other=0).to(S)
        value = tl.load(x + offsets, mask=inside, other=0).to(S)
        y, d = phi(value * a + b, PHI, ALPHA)
        first += grad * d
        second += grad * d * (value - k)
        if ATTENDED:
            d = tl.where(inside, d, 0)
            third += grad * y
            fourth += d
            fifth += d * (value - k)
    tl.store(of_z + row + c, tl.sum(first, 1), mask=c < C)
    tl.store(of_zx + row + c, tl.sum(second, 1), mask=c < C)
    if ATTENDED:
        d_s = tl.sum(third, 1)
        if GATE >= 0:
            d_s = gate_gradient(d_s, tl.load(excitation + row + c, mask=c < C, other=0), GATE)
        tl.store(of_s + row + c, d_s, mask=c < C)
        tl.store(of_one + row + c, tl.sum(fourth, 1), mask=c < C)
        tl.store(of_x + row + c, tl.sum(fifth, 1), mask=c < C)


@triton.jit
def _activated_gradient(
    dy, x, scale, shift, factor, offset, mean, d_mean, d_variance, dx, C, L,
    PHI: tl.constexpr, ALPHA: tl.constexpr, LINE: tl.constexpr, ATTENDED: tl.constexpr,
    SPREAD: tl.constexpr,
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
    if LINE:  # of norm and attention: factors are the scales, offsets the gradients of the means
        of_dy, k = a, tl.zeros_like(a)
        if ATTENDED:
            of_dy = a * tl.load(factor + row + c, mask=c < C, other=0)[:, None]
            k = a * tl.load(offset + row + c, mask=c < C, other=0)[:, None] / L
    else:
        of_dy = tl.load(factor + row + c, mask=c < C, other=0)[:, None]
        k = tl.load(offset + row + c, mask=c < C, other=0)[:, None]
    rest = tl.load(d_mean + own + c, mask=c < C, other=0)[:, None] / L
    value = tl.load(x + offsets, mask=inside, other=0).to(S)
    grad = tl.load(dy + offsets, mask=inside, other=0).to(S)
    _y, d = phi(value * a + b, PHI, ALPHA)
    out = (grad * of_dy + k) * d + rest
    if SPREAD:
        of_x = tl.load(d_variance + own + c, mask=c < C, other=0)[:, None] * 2 / L
        middle = tl.load(mean + own + c, mask=c < C, other=0)[:, None]
        out += (value - middle) * of_x
    tl.store(dx + offsets, out.to(dx.dtype.element_ty), mask=inside)


def activated_means(x: Tensor, scale: Tensor, shift: Tensor, activation: Activation) -> Tensor:
    """Average ``phi(z)`` (:func:`.activated_reference.activated_means`)."""
    x, last = dense(x)
    scale, shift = numbers(x, statistics_dtype(x), scale, shift)
    (mean,) = empty_numbers(x, scale.dtype, 1)
    tensors, constants = (x, scale, shift, mean), _constants(activation) | {"LINE": False}
    reduce_map(_activated_means, 1, x, last, *tensors, **constants)
    return mean


def activate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    s: Tensor,
    shortcut: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Compute ``s phi(z) [+ shortcut]`` (:func:`.activated_reference.activate`)."""
    x, last = dense(x)
    y, joined = torch.empty_like(x), None if shortcut is None else like(shortcut, last)
    tensors = (x, *numbers(x, statistics_dtype(x), scale, shift, s), joined, y)
    flags = {"LINE": False, "ATTENDED": True, "JOINED": joined is not None}
    write_map(_activate, x, last, *tensors, **_constants(activation), **flags)
    return y


def activated_sums(
    dy: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: Activation,
    attended: bool,
) -> tuple[Tensor, ...]:
    """Sum a gradient over space (:func:`.activated_reference.activated_sums`)."""
    x, last = dense(x)
    dy = like(dy, last)
    given = numbers(x, statistics_dtype(x), centre, scale, shift)
    sums = tuple(empty_numbers(x, given[0].dtype, 5 if attended else 2))
    tensors = (dy, x, *given, None, *sums, *(() if attended else (None, None, None)))
    constants = _constants(activation) | {"LINE": False, "ATTENDED": attended, "GATE": NO_GATE}
    reduce_map(_activated_sums, SUMS_OF_FIVE if attended else 2, x, last, *tensors, **constants)
    return sums


def activated_gradient(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    factor: Tensor,
    offset: Tensor,
    mean: Tensor,
    d_mean: Tensor,
    d_variance: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Write the gradient of ``x`` (:func:`.activated_reference.activated_gradient`)."""
    x, last = dense(x)
    dy = like(dy, last)
    dx = torch.empty_like(x)
    given = numbers(x, statistics_dtype(x), scale, shift, factor, offset, mean, d_mean, d_variance)
    constants = _constants(activation) | {"LINE": False, "ATTENDED": True}
    constants["SPREAD"] = d_variance is not None
    write_map(_activated_gradient, x, last, dy, x, *given, dx, **constants)
    return dx


def _constants(activation: Activation) -> dict[str, str | float]:
    return {"PHI": activation.name, "ALPHA": activation.alpha}
