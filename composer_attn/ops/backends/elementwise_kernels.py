"""Activations and gates, with their derivatives, as functions of Triton kernels."""
# Names follow the equations, with Triton's constants in capitals.
# ruff: noqa: N803

import triton
import triton.language as tl

_NAMES = ("sigmoid", "hard_sigmoid", "tanh", "relu")
# Numbers of the gates, by start and name.
GATES = {
    (start, name): len(_NAMES) * i + j
    for i, start in enumerate(("paper", "identity"))
    for j, name in enumerate(_NAMES)
}
NO_GATE = -1


@triton.jit
def sigmoid(z):
    """Return the logistic function."""
    return 1 / (1 + tl.exp(-z))


@triton.jit
def gate(z, GATE: tl.constexpr):
    """Return the scales; ``GATE`` is one of :data:`GATES`, or ``NO_GATE``."""
    around: tl.constexpr = GATE // 4
    height: tl.constexpr = 1 + around
    s = z
    if GATE >= 0:
        if GATE % 4 == 0:
            s = height * sigmoid(z)
        elif GATE % 4 == 1:
            s = tl.where(z < -3, 0, z + 3)
            s = tl.where(s > 6, 6, s) / 6 * height
        elif GATE % 4 == 2:  # the series where 1 - exp(-2 z) would cancel
            near = z * (1 - z * z / 3 * (1 - z * z * 2 / 5 * (1 - z * z * 17 / 42)))
            is_near = tl.abs(z) < (0.01 if z.dtype == tl.float64 else 0.2)
            e = tl.exp(-2 * tl.abs(z))
            far = (1 - e) / (1 + e)
            s = tl.where(is_near, near, tl.where(z < 0, -far, far)) + around
        else:
            s = z + around
            s = tl.where(s < 0, 0, s)
    return s


@triton.jit
def gate_gradient(d, s, GATE: tl.constexpr):
    """Return the gradient of the logits, given that of the scales."""
    around: tl.constexpr = GATE // 4
    height: tl.constexpr = 1 + around
    if GATE >= 0:
        if GATE % 4 == 0:
            d = d * (s - s * s / height)
        elif GATE % 4 == 1:
            # 0, not 0 times a gradient that may be infinite. The slope is a float32 in torch, too.
            d = tl.where((s > 0) & (s < height), d * (height * 0.1666666716337204), 0)
        elif GATE % 4 == 2:
            d = d * (1 - (s - around) * (s - around))
        else:
            d = tl.where(s <= 0, 0, d)
    return d


@triton.jit
def phi(z, PHI: tl.constexpr, ALPHA: tl.constexpr):
    """Return an activation and its derivative; the compiler removes whichever is unused."""
    one = tl.full(z.shape, 1, z.dtype)
    y, d = z, one
    if PHI == "relu":
        y = tl.where(z < 0, 0, z)  # in this form NaN remains NaN, and passes its gradient
        d = tl.where(z <= 0, 0, one)
    elif PHI == "relu6":
        y = tl.where(z < 0, 0, z)
        y = tl.where(y > 6, 6, y)
        d = tl.where((z <= 0) | (z >= 6), 0, one)
    elif PHI == "leaky_relu":
        d = tl.where(z > 0, one, one * ALPHA)
        y = z * d
    elif PHI == "silu":
        s = sigmoid(z)
        y = z * s
        d = s + y * (1 - s)
    elif PHI == "hardswish":
        inner = tl.where(z < -3, 0, z + 3)
        y = z * tl.where(inner > 6, 6, inner) / 6
        d = z / 3 + 0.5
        d = tl.where(tl.abs(z) == 3, d - ALPHA * z / 6, d)
        d = tl.where(z > 3, one, tl.where(z < -3, 0, d))
    elif PHI == "gelu":
        s = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
        y = z * s
        d = s + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    elif PHI == "gelu_tanh":  # (1 + tanh(t)) / 2 = sigmoid(2 t)
        square = 0.044715 * z * z
        s = sigmoid(1.5957691216057308 * z * (1 + square))
        y = z * s
        d = s + y * (1 - s) * 1.5957691216057308 * (1 + 3 * square)
    elif PHI == "mish":  # tanh(log(1 + e)) = n / (n + 2) where n = e (e + 2); from 40 on it is 1
        low = tl.where(z > 40, 40, z)
        e = tl.exp(low)
        n = e * (e + 2)
        inverse = 1 / (n + 2)
        w = n * inverse
        y = z * w
        d = w + low * (4 * e * inverse) * ((1 + e) * inverse)
    elif PHI == "elu":
        low = tl.where(z > 0, 0, z)
        e = tl.exp(low)
        near = low * (1 + low / 2 * (1 + low / 3 * (1 + low / 4 * (1 + low / 5))))
        y = tl.where(z > 0, z, ALPHA * tl.where(low > -0.01, near, e - 1))
        d = tl.where(z > 0, one, ALPHA * e)
    return y, d
