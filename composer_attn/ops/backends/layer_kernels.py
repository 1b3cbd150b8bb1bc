"""The layers of Squeeze-and-Excitation as Triton kernels for CUDA.

A BLAS takes longer to choose a kernel for matrices this small than the kernel takes to run.
"""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803, N806

from typing import Any

import triton
import triton.language as tl

from composer_attn.ops.activations import IDENTITY, RELU, Activation
from composer_attn.ops.backends.elementwise_kernels import NO_GATE, gate, phi
from composer_attn.ops.backends.launch import Call, ceil_divide, next_power_of_2

# Rows and columns of a block of the result.
_BLOCK = 16
# By size of a number: how many products are added at a time; in the gradients of the layers,
# samples, channels, and hidden channels at a time.
_INNER = {4: 32, 8: 16}
_AT_A_TIME = {4: (16, 16, 32), 8: (16, 16, 16)}
_WARPS = 4


@triton.jit
def _product(a, b):
    """Return ``a b``. Tensor cores would round float32, and Triton has none for float64."""
    if a.dtype == tl.float64:
        found = tl.sum(a[:, :, None] * b[None, :, :], 1)
    else:
        found = tl.dot(a, b, input_precision="ieee")
    return found


@triton.jit
def _layer(
    a, b, bias, hidden, out, N, K, R,
    ROWS: tl.constexpr, BIAS: tl.constexpr, FROM: tl.constexpr, BACK: tl.constexpr,
    ALPHA: tl.constexpr, GATE: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """``out (N, R) = phi(a (N, K)) b``, where ``b`` is ``(K, R)``, or ``(R, K)`` if not ``ROWS``.

    ``FROM`` names the activation ``phi``; ``BACK`` one whose derivative at ``hidden`` follows.
    """
    S: tl.constexpr = a.dtype.element_ty
    blocks = tl.cdiv(R, BR)
    n = tl.program_id(0) // blocks * BN + tl.arange(0, BN)
    r = tl.program_id(0) % blocks * BR + tl.arange(0, BR)
    total = tl.zeros([BN, BR], S)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        of_a = tl.load(
            a + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0
        )
        of_a, _slope = phi(of_a, FROM, ALPHA)
        at = k[:, None] * R + r[None, :] if ROWS else r[None, :] * K + k[:, None]
        of_b = tl.load(b + at, mask=(k < K)[:, None] & (r < R)[None, :], other=0)
        total += _product(of_a, of_b)
    if BIAS:
        total += tl.load(bias + r, mask=r < R, other=0)[None, :]
    at = n[:, None] * R + r[None, :]
    inside = (n < N)[:, None] & (r < R)[None, :]
    if BACK != "identity":  # 0, not 0 times a gradient that may be infinite
        _y, slope = phi(tl.load(hidden + at, mask=inside, other=0), BACK, ALPHA)
        total = tl.where(slope == 0, 0, total * slope)
    tl.store(out + at, gate(total, GATE), mask=inside)


@triton.jit
def _layer_gradients(
    d_logits, d_hidden, hidden, means, w1, d_means, d_w1, d_b1, d_w2, d_b2, N, C, H,
    FROM: tl.constexpr, ALPHA: tl.constexpr, ADDED: tl.constexpr,
    BIAS1: tl.constexpr, BIAS2: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the means, or add them if ``ADDED``, and of the parameters."""
    S: tl.constexpr = means.dtype.element_ty
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    of_b2 = tl.zeros([BN, BC], S)
    for h0 in range(0, H, BH):
        h = h0 + tl.arange(0, BH)
        of_w1 = tl.zeros([BH, BC], S)
        of_w2 = tl.zeros([BC, BH], S)
        of_b1 = tl.zeros([BN, BH], S)
        there = (h < H)[:, None] & (c < C)[None, :]
        w = tl.load(w1 + h[:, None] * C + c[None, :], mask=there, other=0)
        for n0 in range(0, N, BN):
            n = n0 + tl.arange(0, BN)
            at, inside = n[:, None] * C + c[None, :], (n < N)[:, None] & (c < C)[None, :]
            at_hidden = n[:, None] * H + h[None, :]
            inside_hidden = (n < N)[:, None] & (h < H)[None, :]
            of_logits = tl.load(d_logits + at, mask=inside, other=0)
            kept, _slope = phi(
                tl.load(hidden + at_hidden, mask=inside_hidden, other=0), FROM, ALPHA
            )
            of_hidden = tl.load(d_hidden + at_hidden, mask=inside_hidden, other=0)
            mean = tl.load(means + at, mask=inside, other=0)
            of_w2 += _product(tl.trans(of_logits), kept)
            of_w1 += _product(tl.trans(of_hidden), mean)
            back = _product(of_hidden, w)
            if ADDED or h0 > 0:
                back += tl.load(d_means + at, mask=inside, other=0)
            tl.store(d_means + at, back, mask=inside)
            of_b1 += of_hidden
            if h0 == 0:
                of_b2 += of_logits
        tl.store(d_w1 + h[:, None] * C + c[None, :], of_w1, mask=there)
        tl.store(
            d_w2 + c[:, None] * H + h[None, :], of_w2, mask=(c < C)[:, None] & (h < H)[None, :]
        )
        if BIAS1:  # every program computes it
            tl.store(d_b1 + h, tl.sum(of_b1, 0), mask=(h < H) & (tl.program_id(0) == 0))
    if BIAS2:
        tl.store(d_b2 + c, tl.sum(of_b2, 0), mask=c < C)


def layer(
    samples: int, inner: int, outer: int, itemsize: int, *, rows: bool = False, bias: bool = False,
    after: Activation = IDENTITY, back: Activation = IDENTITY, gate: int = NO_GATE,
) -> Call:  # fmt: skip
    """Prepare ``out (samples, outer) = phi(a (samples, inner)) b``, and what follows it.

    The call takes ``a, b, bias, hidden, out``.

    Args:
        samples: rows of ``a`` and ``out``.
        inner: columns of ``a``.
        outer: columns of ``out``.
        itemsize: bytes of a number, 4 or 8.
        rows: whether ``b`` is ``(inner, outer)``; otherwise ``(outer, inner)``, as weights are.
        bias: whether to add ``bias (outer,)``.
        after: the activation ``phi``.
        back: an activation whose derivative at ``hidden (samples, outer)`` to multiply by.
        gate: the gate to apply: one of :data:`.elementwise_kernels.GATES`, or ``NO_GATE``.
    """
    programs = ceil_divide(samples, _BLOCK) * ceil_divide(outer, _BLOCK)
    alpha = (after if back == IDENTITY else back).alpha
    flags: dict[str, Any] = {
        "ROWS": rows,
        "BIAS": bias,
        "FROM": after.name,
        "BACK": back.name,
        "ALPHA": alpha,
    }
    blocks = {"BN": _BLOCK, "BK": _fitting(_INNER[itemsize], inner), "BR": _BLOCK}
    return Call(_layer, programs, (samples, inner, outer), _WARPS, **flags, GATE=gate, **blocks)


def layer_gradients(
    samples: int, channels: int, hidden: int, itemsize: int, biases: tuple[bool, bool],
    *, after: Activation = RELU, added: bool = False,
) -> Call:  # fmt: skip
    """Prepare the gradients of two layers, given that of the hidden channels.

    The call takes ``d_logits, d_hidden, hidden, means, w1, d_means, d_w1, d_b1, d_w2, d_b2``.

    Args:
        samples: rows of all of them but the parameters.
        channels: columns of ``d_logits`` and ``means``.
        hidden: columns of ``d_hidden`` and ``hidden``.
        itemsize: bytes of a number, 4 or 8.
        biases: whether each of the layers has a bias.
        after: the activation between the layers, of which ``hidden`` is the input.
        added: whether to add the gradient of the means to ``d_means``.
    """
    rows, across, within = _AT_A_TIME[itemsize]
    blocks = {"BN": rows, "BC": across, "BH": _fitting(within, hidden)}
    flags: dict[str, Any] = {"FROM": after.name, "ALPHA": after.alpha, "ADDED": added}
    flags |= dict(zip(("BIAS1", "BIAS2"), biases, strict=True))
    sizes = (samples, channels, hidden)
    return Call(_layer_gradients, ceil_divide(channels, across), sizes, _WARPS, **flags, **blocks)


def _fitting(most: int, size: int) -> int:
    """Return the size of a block, which is at least 16."""
    return min(most, max(16, next_power_of_2(size)))
