"""A convolution along the channels, and its gradient, as Triton kernels for CUDA."""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

import torch
import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops.backends.elementwise_kernels import NO_GATE, gate
from composer_attn.ops.backends.launch import Call, ceil_divide
from composer_attn.ops.backends.layout import contiguous

_WARPS = 4
# Elements per program: of one row in the convolution, of all rows in its kernel's gradient.
_ROW, _PART = 512, 4096


@triton.jit
def _convolve(
    x, kernel, y, size, C,
    FLIPPED: tl.constexpr, GATE: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = x.dtype.element_ty
    pieces = tl.cdiv(C, B)
    row = tl.program_id(0) // pieces * C
    c = tl.program_id(0) % pieces * B + tl.arange(0, B)
    total = tl.zeros([B], S)
    for j in range(size):
        at = c + j - size // 2
        w = tl.load(kernel + (size - 1 - j if FLIPPED else j))
        total += w * tl.load(x + row + at, mask=(at >= 0) & (at < C), other=0)
    tl.store(y + row + c, gate(total, GATE), mask=c < C)


@triton.jit
def convolved_block(
    x, kernel, at, c, there, C, FLIPPED: tl.constexpr, SIZE: tl.constexpr, BN: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Return a block ``(BN, BC)`` of a convolution, whose own values in ``x`` are at ``at``."""
    total = tl.zeros([BN, BC], x.dtype.element_ty)
    for j in range(SIZE):
        to = c + j - SIZE // 2
        w = tl.load(kernel + (SIZE - 1 - j if FLIPPED else j))
        inside = there & ((to >= 0) & (to < C))[None, :]
        total += w * tl.load(x + at + j - SIZE // 2, mask=inside, other=0)
    return total


@triton.jit
def part_of_kernel_gradient(
    d_logits, means, parts, c, first, last, N, C, WIDTH,
    SIZE: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write what the channels ``first`` to ``last - 1`` of ``c`` contribute to the gradient.

    ``d_logits`` points to channel 0, in rows of ``WIDTH`` numbers that have at least these.
    """
    for j in range(SIZE):
        sums = tl.zeros([BN, BC], means.dtype.element_ty)
        to = c + j - SIZE // 2
        own = (c >= first) & (c < last) & (c < C) & (to >= 0) & (to < C)
        for n0 in range(0, N, BN):
            n = n0 + tl.arange(0, BN)
            there = (n < N)[:, None] & own[None, :]
            d = tl.load(d_logits + n[:, None] * WIDTH + c[None, :], mask=there, other=0)
            sums += d * tl.load(means + n[:, None] * C + to[None, :], mask=there, other=0)
        tl.store(parts + tl.program_id(0) * SIZE + j, tl.sum(tl.sum(sums, 1), 0))


@triton.jit
def _kernel_gradient(d_logits, means, parts, size, C, numel, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    gradient = tl.load(d_logits + i, mask=i < numel, other=0)
    for j in range(size):
        at = i % C + j - size // 2
        inside = (i < numel) & (at >= 0) & (at < C)
        met = tl.load(means + i + j - size // 2, mask=inside, other=0)
        tl.store(parts + tl.program_id(0) * size + j, tl.sum(gradient * met, 0))


def convolve(means: Tensor, kernel: Tensor) -> Tensor:
    """Convolve along the channels (:func:`composer_attn.ops.logits.convolve`)."""
    return _convolved(contiguous(means), contiguous(kernel), flipped=False)


def convolve_gradient(d_logits: Tensor, means: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate :func:`convolve` (:func:`composer_attn.ops.logits.convolve_gradient`)."""
    d_logits, means, kernel = map(contiguous, (d_logits, means, kernel))
    samples, channels = means.shape
    of_kernel = kernel_gradient(samples, channels, kernel.numel())
    parts = means.new_empty(of_kernel.programs, kernel.numel())
    of_kernel.on(d_logits, means, parts)
    d_means = _convolved(d_logits, kernel, flipped=True)
    return d_means, parts.sum(0).view_as(kernel)


def convolution(samples: int, channels: int, size: int, **flags: bool | int) -> Call:
    """Prepare a convolution along the channels, which takes ``x, kernel, y``.

    Args:
        samples: rows of ``x``.
        channels: columns of ``x``.
        size: size of the kernel.
        flags: ``FLIPPED``, whether to flip the kernel; ``GATE``, one of
            :data:`.elementwise_kernels.GATES`, applied at the end.
    """
    programs = samples * ceil_divide(channels, _ROW)
    constants = {"FLIPPED": False, "GATE": NO_GATE} | flags
    return Call(_convolve, programs, (size, channels), _WARPS, **constants, B=_ROW)


def kernel_gradient(samples: int, channels: int, size: int) -> Call:
    """Prepare the gradient of the kernel, which takes ``d_logits, means, parts``.

    ``parts`` has a row for each program; their sum is the gradient.
    """
    numel = samples * channels
    sizes = (size, channels, numel)
    return Call(_kernel_gradient, ceil_divide(numel, _PART), sizes, _WARPS, B=_PART)


def _convolved(x: Tensor, kernel: Tensor, flipped: bool) -> Tensor:
    y = torch.empty_like(x)
    samples, channels = x.shape
    convolution(samples, channels, kernel.numel(), FLIPPED=flipped).on(x, kernel, y)
    return y
