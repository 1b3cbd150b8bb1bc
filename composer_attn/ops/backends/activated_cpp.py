"""The passes with an activation in C++, in a small library for each activation."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.backends.cpp import FOLDER, SIZES, Function, call, functions
from composer_attn.ops.backends.cpp_build import build
from composer_attn.ops.backends.layout import dense, empty_numbers, like, numbers
from composer_attn.ops.backends.reference import statistics_dtype

__all__ = [
    "activate",
    "activated_gradient",
    "activated_means",
    "activated_sums",
    "load",
]

# Number of pointers; alpha follows them.
_POINTERS = {
    "activated_means": 4, "activate": 6, "activated_sums": 10, "activated_gradient": 10
}  # fmt: skip
_ARGUMENTS = {
    name: [ctypes.c_void_p] * number + [ctypes.c_double] + SIZES
    for name, number in _POINTERS.items()
}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@cache
def load(activation: str) -> dict[tuple[str, torch.dtype], Function]:
    """Return the functions of an activation by name and dtype, building them if necessary."""
    library = build(FOLDER / "activated.cpp", ACTIVATION=activation)
    return functions(library, _ARGUMENTS, _DTYPES)


def activated_means(x: Tensor, scale: Tensor, shift: Tensor, activation: Activation) -> Tensor:
    """Average ``phi(z)`` (:func:`.activated_reference.activated_means`)."""
    x, last = dense(x)
    scale, shift = numbers(x, statistics_dtype(x), scale, shift)
    (mean,) = empty_numbers(x, scale.dtype, 1)
    _run("activated_means", activation, x, last, x, scale, shift, mean)
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
    y = torch.empty_like(x)
    shortcut = None if shortcut is None else like(shortcut, last)
    _run(
        "activate",
        activation,
        x,
        last,
        x,
        *numbers(x, statistics_dtype(x), scale, shift, s),
        shortcut,
        y,
    )
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
    rest = () if attended else (None, None, None)
    _run("activated_sums", activation, x, last, dy, x, *given, *sums, *rest)
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
    _run("activated_gradient", activation, x, last, dy, x, *given, dx)
    return dx


def _run(name: str, activation: Activation, x: Tensor, last: bool, *tensors: Tensor | None) -> None:
    function = load(activation.name)[name, x.dtype]
    call(function, x, last, *tensors, activation.alpha)
