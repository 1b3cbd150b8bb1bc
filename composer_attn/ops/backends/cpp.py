"""The four passes on CPU in C++ (``cpp_sources``), built at first use by the installed compiler.

Compared to the code that ``torch.compile`` generates for the same passes, one build of seconds
serves all shapes, layouts and dtypes; the Python overhead of a call is microseconds, not tens of
them; and sums in channels last read memory in order (``benchmarks/op.py`` compares both).
"""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from composer_attn.ops import normalization as plain
from composer_attn.ops.backends.cpp_build import build
from composer_attn.ops.backends.layout import (
    all_like,
    contiguous,
    dense,
    empty_numbers,
    like,
    numbers,
)
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.normalization import Running

Function = Callable[..., None]
FOLDER = Path(__file__).parent / "cpp_sources"
DTYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}
# Types of the trailing arguments: N, C, L, channels last, threads.
SIZES = [ctypes.c_int64] * 3 + [ctypes.c_bool, ctypes.c_int]
_ARGUMENTS: dict[str, list] = {
    "moments": [ctypes.c_void_p] * 4 + SIZES,
    "affine": [ctypes.c_void_p] * 5 + [ctypes.c_bool] + SIZES,
    "gradient_sums": [ctypes.c_void_p] * 9 + SIZES,
    "input_gradient": [ctypes.c_void_p] * 8 + SIZES,
    "normalization": [ctypes.c_void_p] * 11
    + [ctypes.c_double] * 3
    + [ctypes.c_bool]
    + [ctypes.c_int64] * 2,
    "normalization_gradient": [ctypes.c_void_p] * 13 + [ctypes.c_bool] + [ctypes.c_int64] * 2,
    "convolve": [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3,
    "convolve_gradient": [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3,
}
_PASSES = ("moments", "affine", "gradient_sums", "input_gradient")
# Numbers of the gates in gates.h, by start and name.
_GATES = ("sigmoid", "hard_sigmoid", "tanh", "relu")
_STARTS = ("paper", "identity")
GATES = {
    (start, gate): 4 * i + j for i, start in enumerate(_STARTS) for j, gate in enumerate(_GATES)
}
# With fewer values, waking other threads takes longer than the pass.
_ALONE = 1 << 14


@cache
def load() -> dict[tuple[str, torch.dtype], Function]:
    """Return the functions by name and dtype, building them if necessary."""
    library = build(FOLDER / "passes.cpp")
    found = functions(library, {name: _ARGUMENTS[name] for name in _PASSES}, DTYPES)
    # Statistics are at least float32.
    between = {name: each for name, each in _ARGUMENTS.items() if name not in _PASSES}
    return found | functions(library, between, (torch.float32, torch.float64))


def functions(
    library: ctypes.CDLL, arguments: dict[str, list], dtypes: Iterable[torch.dtype]
) -> dict[tuple[str, torch.dtype], Function]:
    """Return the functions of a library by name and dtype."""
    found = {}
    for name, types in arguments.items():
        for dtype in dtypes:
            found[name, dtype] = function = getattr(library, f"{name}_{DTYPES[dtype]}")
            function.argtypes, function.restype = types, None
    return found


def _run(name: str, x: Tensor, last: bool, *arguments: Tensor | bool | None) -> None:
    call(load()[name, x.dtype], x, last, *arguments)


def call(function: Function, x: Tensor, last: bool, *arguments: Tensor | float | None) -> None:
    """Call a pass over feature maps with the shape of ``x``, in one of the two layouts."""
    samples, channels, *_ = x.shape
    values = x.numel()
    given = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    function(*given, samples, channels, values // (samples * channels), last, threads(values))


def threads(values: int, alone: int = _ALONE) -> int:
    """Return the number of threads of a pass over a feature map: one if it has fewer values."""
    return 1 if values < alone else torch.get_num_threads()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over space (:func:`.reference.moments`)."""
    x, last = dense(x)
    mean, variance, shift = empty_numbers(x, statistics_dtype(x), 3)
    _run("moments", x, last, x, mean, variance, shift)
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute ``scale x + shift [+ shortcut]`` (:func:`.reference.affine`)."""
    x, last = dense(x)
    scale, shift = numbers(x, statistics_dtype(x), scale, shift)
    y = torch.empty_like(x)
    shortcut = None if shortcut is None else like(shortcut, last)
    _run("affine", x, last, x, scale, shift, shortcut, y, relu)
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
    _run("gradient_sums", x, last, dy, x, *given, y, g, first, second)
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
    dy = like(dy, last)
    dx = torch.empty_like(x)
    given = numbers(x, statistics_dtype(x), slope, mean, d_mean, d_variance, shift)
    _run("input_gradient", x, last, dy, x, *given, dx)
    return dx


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
    kept, rates = running_arguments(running)
    if not all_like(mean, weight, bias, *kept) or isinstance(rates[0], Tensor):
        return plain.normalization(s, mean, variance, weight, bias, eps, running)
    s, mean, variance = numbers(mean, mean.dtype, s, mean, variance)
    found = plain.empty_results(mean)
    tensors = (s, mean, variance, weight, bias, *kept, *found)
    load()["normalization", s.dtype](*pointers(*tensors), eps, *rates, *s.shape)
    return found


def running_arguments(
    running: Running | None,
) -> tuple[tuple[Tensor | None, Tensor | None], tuple[float | Tensor, float, bool]]:
    """Return running mean and variance; momentum, correction of the variance, and if fixed."""
    if running is None:
        return (None, None), (0, 0, False)
    correction = running.number / (running.number - 1)
    return running[:2], (running.momentum, correction, running.fixed)


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
    given = (d_scale, d_shift, s, mean, variance)
    if not all_like(mean, mu, inverse, weight):
        return plain.normalization_gradient(*given, mu, inverse, weight, fixed)
    dense_ones = numbers(mean, mean.dtype, *given)
    found = plain.empty_gradients(dense_ones[3])  # contiguous
    addresses = pointers(*dense_ones, mu, inverse, weight, *found)
    load()["normalization_gradient", mean.dtype](*addresses, fixed, *mean.shape)
    return found


def convolve(means: Tensor, kernel: Tensor) -> Tensor:
    """Convolve along the channels (:func:`composer_attn.ops.logits.convolve`)."""
    means, kernel = contiguous(means), contiguous(kernel)
    logits = torch.empty_like(means)
    _on_channels("convolve", means, kernel, logits, size=kernel.numel())
    return logits


def convolve_gradient(d_logits: Tensor, means: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate :func:`convolve` (:func:`composer_attn.ops.logits.convolve_gradient`)."""
    d_logits, means, kernel = map(contiguous, (d_logits, means, kernel))
    d_means, d_kernel = torch.empty_like(means), torch.empty_like(kernel)
    tensors = (d_logits, means, kernel, d_means, d_kernel)
    _on_channels("convolve_gradient", *tensors, size=kernel.numel())
    return d_means, d_kernel


def _on_channels(name: str, *tensors: Tensor, size: int) -> None:
    load()[name, tensors[0].dtype](*pointers(*tensors), size, *tensors[0].shape)


def pointers(*tensors: Tensor | None) -> list[int | None]:
    """Return the addresses of tensors."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
