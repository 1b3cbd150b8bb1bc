"""Batch norm on ``(N, C)`` tensors, and its gradient, as Triton kernels for CUDA.

In plain torch it would be some thirty small kernels at each site, forward and backward, whose
launches take a network as long as a pass over its feature maps.
"""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

import triton
import triton.language as tl
from torch import Tensor

from composer_attn.ops import normalization as plain
from composer_attn.ops.backends.convolution_kernels import (
    convolved_block,
    part_of_kernel_gradient,
)
from composer_attn.ops.backends.elementwise_kernels import NO_GATE, gate_gradient
from composer_attn.ops.backends.launch import Call, ceil_divide, next_power_of_2
from composer_attn.ops.backends.layout import numbers
from composer_attn.ops.normalization import Running

# A program handles 16 channels: 64 contiguous bytes, and enough programs for narrow networks.
_CHANNELS = 16
_SAMPLES = 64
_WARPS = 4


@triton.jit
def _block(n0, c, N, C, BN: tl.constexpr):
    """Return the offsets of a block of samples and channels, and the mask of valid ones."""
    n = n0 + tl.arange(0, BN)
    return n[:, None] * C + c[None, :], (n < N)[:, None] & ((c >= 0) & (c < C))[None, :]


@triton.jit
def _scales(s, at, there, UNIT: tl.constexpr):
    """Return a block of the scales, or of 1."""
    e = tl.full(at.shape, 1, s.dtype.element_ty)
    if not UNIT:
        e = tl.load(s + at, mask=there, other=0)
    return e


@triton.jit(do_not_specialize=["count"])
def _normalization(
    s, mean, variance, weight, bias, running_mean, running_variance,
    scale, shift, mu, inverse, line, count, N, C,
    EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, KEPT: tl.constexpr, FIXED: tl.constexpr,
    UNIT: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    S: tl.constexpr = s.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    if KEPT:
        kept_mean = tl.load(running_mean + c, mask=inside, other=0).to(S)
        kept_variance = tl.load(running_variance + c, mask=inside, other=1).to(S)
    if FIXED:
        m, v = kept_mean, kept_variance
    else:
        sums = tl.zeros([BN, BC], S)
        for n0 in range(0, N, BN):
            at, there = _block(n0, c, N, C, BN)
            sums += _scales(s, at, there, UNIT) * tl.load(mean + at, mask=there, other=0)
        m = tl.sum(sums, 0) / N
        sums = tl.zeros([BN, BC], S)
        for n0 in range(0, N, BN):
            at, there = _block(n0, c, N, C, BN)
            e = _scales(s, at, there, UNIT)
            deviation = e * tl.load(mean + at, mask=there, other=0) - m[None, :]
            square = e * e * tl.load(variance + at, mask=there, other=0) + deviation * deviation
            sums += tl.where(there, square, 0)
        v = tl.sum(sums, 0) / N
        if KEPT:
            unbiased = v * (count.to(S) / (count - 1).to(S))
            kept_mean += MOMENTUM * (m - kept_mean)
            kept_variance += MOMENTUM * (unbiased - kept_variance)
            to = running_mean.dtype.element_ty
            tl.store(running_mean + c, kept_mean.to(to), mask=inside)
            tl.store(running_variance + c, kept_variance.to(to), mask=inside)
    r = 1 / tl.sqrt(v + EPS)
    w = r
    if WEIGHT:
        w = r * tl.load(weight + c, mask=inside, other=0).to(S)
    b = -m * w
    if BIAS:
        b += tl.load(bias + c, mask=inside, other=0).to(S)
    tl.store(mu + c, m, mask=inside)
    tl.store(inverse + c, r, mask=inside)
    if UNIT:  # scale and shift, the same for all samples
        tl.store(line + c, w, mask=inside)
        tl.store(line + C + c, b, mask=inside)
    for n0 in range(0, N, BN):
        at, there = _block(n0, c, N, C, BN)
        tl.store(scale + at, _scales(s, at, there, UNIT) * w[None, :], mask=there)
        tl.store(shift + at, tl.zeros([BN, BC], S) + b[None, :], mask=there)


@triton.jit
def _normalization_gradient(
    d_scale, d_shift, s, mean, variance, mu, inverse, weight, kernel,
    d_s, d_mean, d_variance, d_weight, d_bias, parts, N, C,
    WEIGHT: tl.constexpr, FIXED: tl.constexpr, GATE: tl.constexpr, SIZE: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Differentiate a norm and a gate and, if ``SIZE`` is not 0, a convolution before the gate.

    The convolution's gradient needs those of the logits of neighbouring channels: each program
    computes these, too, and keeps all of its gradients in its own part of ``d_s``.
    """
    S: tl.constexpr = s.dtype.element_ty
    # The channels first to last - 1 are those of this program.
    own_channels: tl.constexpr = BC - SIZE // 2 * 2
    first = tl.program_id(0) * own_channels
    last = first + own_channels
    c = first - SIZE // 2 + tl.arange(0, BC)
    inside = (c >= 0) & (c < C)
    own = (c >= first) & (c < last) & (c < C)
    m = tl.load(mu + c, mask=inside, other=0)[None, :]
    r = tl.load(inverse + c, mask=inside, other=0)
    w = r
    if WEIGHT:
        w = r * tl.load(weight + c, mask=inside, other=0).to(S)
    sums = tl.zeros([BN, BC], S)
    products = tl.zeros([BN, BC], S)
    for n0 in range(0, N, BN):
        at, there = _block(n0, c, N, C, BN)
        e = tl.load(s + at, mask=there, other=0)
        gradient = tl.load(d_shift + at, mask=there, other=0)
        sums += gradient
        products += tl.load(d_scale + at, mask=there, other=0) * e
        products += gradient * (e * tl.load(mean + at, mask=there, other=0) - m)
    d_b, d_w = tl.sum(sums, 0), tl.sum(products, 0)
    tl.store(d_bias + c, d_b, mask=own)
    tl.store(d_weight + c, d_w * r, mask=own)
    # Twice the gradient of var, and the gradient of mu, each divided among the N samples.
    d_var = tl.zeros([BC], S)
    d_mu = tl.zeros([BC], S)
    if not FIXED:
        d_var -= d_w * w * r * r / N
        d_mu -= w * d_b / N
    d_logits, width = d_s, C
    if SIZE > 0:
        d_logits += tl.program_id(0) * N * BC + SIZE // 2 - first  # of channel 0
        width = BC
    for n0 in range(0, N, BN):
        at, there = _block(n0, c, N, C, BN)
        e = tl.load(s + at, mask=there, other=0)
        own_mean = tl.load(mean + at, mask=there, other=0)
        of_s = tl.load(d_shift + at, mask=there, other=0) * w[None, :]
        if FIXED:
            # Multiplying a sum that one sample made infinite by 0 would give NaN.
            of_mean = tl.zeros([BN, BC], S)
            of_variance = of_mean
        else:
            d_scaled = d_mu[None, :] + d_var[None, :] * (e * own_mean - m)
            of_s += d_scaled
            of_mean = d_scaled * e
            of_variance = e * e * d_var[None, :] / 2
        # The terms nearly cancel if the mean is large: add them before multiplying by it.
        of_s = of_s * own_mean + tl.load(d_scale + at, mask=there, other=0) * w[None, :]
        if not FIXED:
            of_s += d_var[None, :] * e * tl.load(variance + at, mask=there, other=0)
        n = n0 + tl.arange(0, BN)
        to = n[:, None] * width + c[None, :]
        tl.store(d_logits + to, gate_gradient(of_s, e, GATE), mask=there)
        tl.store(d_mean + at, of_mean, mask=there & own[None, :])
        tl.store(d_variance + at, of_variance, mask=there & own[None, :])
    if SIZE > 0:
        tl.debug_barrier()  # threads read what others have written
        for n0 in range(0, N, BN):
            at, there = _block(n0, c, N, C, BN)
            there = there & own[None, :]
            n = n0 + tl.arange(0, BN)
            to = n[:, None] * BC + c[None, :]
            of_mean = convolved_block(d_logits, kernel, to, c, there, C, True, SIZE, BN, BC)
            of_mean += tl.load(d_mean + at, mask=there, other=0)
            tl.store(d_mean + at, of_mean, mask=there)
        part_of_kernel_gradient(d_logits, mean, parts, c, first, last, N, C, BC, SIZE, BN, BC)


def normalization(
    s: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize ``s x`` (:func:`composer_attn.ops.normalization.normalization`)."""
    if running is not None and not _in_kernel(running):
        return plain.normalization(s, mean, variance, weight, bias, eps, running)
    s, mean, variance = numbers(mean, mean.dtype, s, mean, variance)
    kept = running or Running(mean, mean, 0, 2)
    found = plain.empty_results(mean)
    given = (s, mean, variance, _or(weight, mean), _or(bias, mean), *kept[:2])
    samples, channels = mean.shape
    normalizing(
        samples,
        channels, kept.number, EPS=eps, MOMENTUM=float(kept.momentum),
        WEIGHT=weight is not None, BIAS=bias is not None,
        KEPT=running is not None, FIXED=kept.fixed, UNIT=False,
    ).on(*given, *found, mean)  # fmt: skip
    return found


def normalization_gradient(
    d_scale: Tensor,
    d_shift: Tensor,
    s: Tensor,
    mean: Tensor,
    variance: Tensor,
    mu: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    fixed: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate :func:`normalization` (:func:`.normalization.normalization_gradient`)."""
    given = numbers(mean, mean.dtype, d_scale, d_shift, s, mean, variance)
    mean = given[3]  # contiguous
    found = plain.empty_gradients(mean)
    given += [_or(value, mean) for value in (mu, inverse, weight)]
    samples, channels = mean.shape
    run = normalizing_gradient(samples, channels, weight is not None, fixed, NO_GATE, 0)
    run.on(*given, mean, *found, mean)
    return found


def normalizing(samples: int, channels: int, number: int, **constants: float | bool) -> Call:
    """Prepare :func:`normalization` of ``number`` values per channel."""
    blocks = {"BN": min(_SAMPLES, next_power_of_2(samples)), "BC": _CHANNELS}
    programs, sizes = ceil_divide(channels, _CHANNELS), (number, samples, channels)
    return Call(_normalization, programs, sizes, _WARPS, **constants, **blocks)


def normalizing_gradient(
    samples: int, channels: int, weight: bool, fixed: bool, gate: int, size: int
) -> Call:
    """Prepare :func:`normalization_gradient`, followed by the gradient of a gate.

    The call takes ``d_scale, d_shift, s, mean, variance, mu, inverse, weight, kernel, d_s, d_mean,
    d_variance, d_weight, d_bias, parts``.

    Args:
        samples: number of samples.
        channels: number of channels.
        weight: whether the norm has a weight.
        fixed: whether its statistics are independent of the batch.
        gate: one of :data:`.elementwise_kernels.GATES`.
        size: if not 0, the logits are a convolution of the means by a kernel of this size. Its
            gradient is added to ``d_mean``, each program writes a row ``(size,)`` of ``parts``,
            whose sum is the kernel's gradient, and ``d_s``, to be used by nothing else, has
            :func:`numbers_of_gradient` numbers.
    """
    across = _channels_of_gradient(size)
    # Together with the convolution's loops, a block of as many numbers would not fit the registers.
    most = _SAMPLES * _CHANNELS // across // (2 if size else 1)
    block = {"BN": min(max(1, most), next_power_of_2(samples)), "BC": across}
    programs = ceil_divide(channels, across - size // 2 * 2)
    flags = {"WEIGHT": weight, "FIXED": fixed, "GATE": gate, "SIZE": size}
    return Call(_normalization_gradient, programs, (samples, channels), _WARPS, **flags, **block)


def numbers_of_gradient(samples: int, channels: int, size: int) -> int:
    """Return how many numbers of ``d_s`` :func:`normalizing_gradient` writes."""
    if size == 0:
        return samples * channels
    across = _channels_of_gradient(size)
    return ceil_divide(channels, across - size // 2 * 2) * samples * across


def _channels_of_gradient(size: int) -> int:
    """Return the channels of a block, including the neighbours of its own."""
    return next_power_of_2(_CHANNELS + size // 2 * 2)


def _in_kernel(running: Running) -> bool:
    """Return whether a kernel can update the statistics: momentum must be a constant."""
    if isinstance(running.momentum, Tensor):
        return False
    return all(k.is_contiguous() and not k.is_neg() for k in (running.mean, running.variance))


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """Return a tensor, or ``other`` as a placeholder that no kernel accesses."""
    return other if tensor is None else tensor.resolve_neg().contiguous()
