"""The arithmetic between the passes for a norm followed by an activation, as Triton kernels.

The norm's numbers are lines ``(C,)``, the same for all samples.
"""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

import triton
import triton.language as tl

from composer_attn.ops.backends.convolution_kernels import convolved_block, part_of_kernel_gradient
from composer_attn.ops.backends.launch import Call, ceil_divide, next_power_of_2

_CHANNELS, _SAMPLES, _WARPS = 16, 64, 4


@triton.jit
def _norm_gradient(
    of_z, of_zx, s, of_one, of_x, d_m, mu, inverse, weight, d_logits, kernel, means,
    slope, d_mean, d_variance, d_weight, d_bias, parts, N, C, L,
    WEIGHT: tl.constexpr, FIXED: tl.constexpr, ATTENDED: tl.constexpr, SIZE: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Reduce the sums of :func:`.activated_reference.activated_sums`, centred on ``mu``.

    If the attention is a convolution along the channels (``SIZE`` is not 0), differentiate it, too.
    """
    S: tl.constexpr = of_z.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < C
    sums = tl.zeros([BN, BC], S)
    products = tl.zeros([BN, BC], S)
    for n0 in range(0, N, BN):
        n = n0 + tl.arange(0, BN)
        at, there = n[:, None] * C + c[None, :], (n < N)[:, None] & inside[None, :]
        b = tl.load(of_z + at, mask=there, other=0)
        d = tl.load(of_zx + at, mask=there, other=0)
        if ATTENDED:
            e = tl.load(s + at, mask=there, other=0)
            if SIZE > 0:
                of_mean = convolved_block(d_logits, kernel, at, c, there, C, True, SIZE, BN, BC)
                tl.store(d_m + at, of_mean, mask=there)
            else:
                of_mean = tl.load(d_m + at, mask=there, other=0)
            k = of_mean / L
            b = e * b + k * tl.load(of_one + at, mask=there, other=0)
            d = e * d + k * tl.load(of_x + at, mask=there, other=0)
        sums += b
        products += d
    r = tl.load(inverse + c, mask=inside, other=0)
    w = r
    if WEIGHT:
        w = r * tl.load(weight + c, mask=inside, other=0).to(S)
    tl.store(slope + c, w, mask=inside)
    d_b, d_w = tl.sum(sums, 0), tl.sum(products, 0)
    tl.store(d_bias + c, d_b, mask=inside)
    tl.store(d_weight + c, d_w * r, mask=inside)
    d_mu = tl.zeros([BC], S)
    if not FIXED:  # not times 0, which would turn an infinite sum into NaN
        d_mu -= w * d_b / N
    tl.store(d_mean + c, d_mu, mask=inside)
    tl.store(d_variance + c, -d_w * w * r * r / N / 2, mask=inside)
    if SIZE > 0:
        part_of_kernel_gradient(d_logits, means, parts, c, 0, C, N, C, C, SIZE, BN, BC)


@triton.jit
def _normalized_means(mean, mu, scale, bias, out, C, BIAS: tl.constexpr, B: tl.constexpr):
    """Compute ``scale (mean - mu) + bias``, which does not cancel, for a row of samples."""
    blocks = tl.cdiv(C, B)
    row = tl.program_id(0) // blocks * C
    c = tl.program_id(0) % blocks * B + tl.arange(0, B)
    inside = c < C
    deviation = tl.load(mean + row + c, mask=inside, other=0) - tl.load(
        mu + c, mask=inside, other=0
    )
    found = deviation * tl.load(scale + c, mask=inside, other=0)
    if BIAS:
        found += tl.load(bias + c, mask=inside, other=0)
    tl.store(out + row + c, found, mask=inside)


def norm_gradient(
    samples: int, channels: int, positions: int, weight: bool, fixed: bool, attended: bool,
    size: int,
) -> Call:  # fmt: skip
    """Prepare the gradient of a norm.

    The call takes ``of_z, of_zx, s, of_one, of_x, d_m, mu, inverse, weight, d_logits, kernel,
    means, slope, d_mean, d_variance, d_weight, d_bias, parts``: five sums over space with the
    scales, and the gradient of the means that the scales are of (``ATTENDED``), all ``(N, C)``;
    then lines ``(C,)``, of which the last five are written.

    If the logits are a convolution of the means by a kernel of size ``size``, ``d_m`` is written,
    too, as is a row ``(size,)`` of ``parts`` by each program, whose sum is the kernel's gradient.
    """
    blocks = {"BN": min(_SAMPLES, next_power_of_2(samples)), "BC": _CHANNELS}
    flags = {"WEIGHT": weight, "FIXED": fixed, "ATTENDED": attended, "SIZE": size}
    sizes = (samples, channels, positions)
    return Call(_norm_gradient, ceil_divide(channels, _CHANNELS), sizes, _WARPS, **flags, **blocks)


def normalized_means(samples: int, channels: int, bias: bool) -> Call:
    """Prepare the means of a norm's output, given ``mean, mu, scale, bias, out``."""
    block = 512
    programs = samples * ceil_divide(channels, block)
    return Call(_normalized_means, programs, (channels,), _WARPS, BIAS=bias, B=block)
