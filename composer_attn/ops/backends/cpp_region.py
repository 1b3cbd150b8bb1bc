"""Norm, activation and attention in C++: one call per stage, and one for the gradient.

The ``(N, C)`` numbers of the forward are in one workspace, which is not kept for backward
(``cpp_sources/region.h``). On small feature maps a network's time is that of Python's calls, of
which this needs few: ``benchmarks/train_step --variants own_fused,own_fused_norms``.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from composer_attn.ops.activations import ACTIVATIONS, Activation
from composer_attn.ops.backends import activated_cpp, cpp
from composer_attn.ops.backends.cpp_blas import give_blas, has_blas
from composer_attn.ops.backends.cpp_build import build
from composer_attn.ops.backends.layout import all_like, is_last, like
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.region_interface import RegionLayers, RegionNumbers, four
from composer_attn.ops.logits import Parameters
from composer_attn.ops.manual_gradients import Norm

_OF_LAYERS = [ctypes.c_int, ctypes.c_int64, ctypes.c_int, ctypes.c_double, ctypes.c_int]
_OF_NORM = {
    "region_normalize": [ctypes.c_void_p] * 8 + [ctypes.c_double] * 3 + [ctypes.c_bool] + cpp.SIZES,
    "sum_gradient": [ctypes.c_void_p] * 10 + [ctypes.c_bool] + cpp.SIZES,
}
_OF_ACTIVATION = {
    "region_attend": [ctypes.c_void_p] * 10
    + [ctypes.c_double, ctypes.c_bool]
    + _OF_LAYERS
    + cpp.SIZES,
    "region_gradient": [ctypes.c_void_p] * 18
    + [ctypes.c_double, ctypes.c_bool]
    + _OF_LAYERS
    + cpp.SIZES,
}
# Numbers of the kinds of layers in region.h.
_KINDS = {"kernel": 0, "one": 1, "two": 2}
_NO_LAYERS = (0, 0, 0, 0.0, 0)
# Samples, channels, positions, whether the map is channels last, threads.
Sizes = tuple[int, int, int, bool, int]


@cache
def load() -> dict[tuple[str, torch.dtype], cpp.Function]:
    """Return the functions of a norm by name and dtype, building them if necessary."""
    return cpp.functions(build(cpp.FOLDER / "passes.cpp"), _OF_NORM, cpp.DTYPES)


@cache
def _load_for(activation: str) -> dict[tuple[str, torch.dtype], cpp.Function]:
    library = build(cpp.FOLDER / "activated.cpp", ACTIVATION=activation)
    give_blas(library)
    return cpp.functions(library, _OF_ACTIVATION, cpp.DTYPES)


def is_available() -> bool:
    """Return whether the calls can be used: the layers of an attention need torch's BLAS."""
    return has_blas()


def normalize(
    x: Tensor, norm: Norm, weight: Tensor | None, bias: Tensor | None
) -> RegionNumbers | None:
    """Normalize (:meth:`.region_interface.RegionCalls.normalize`)."""
    last = not x.is_contiguous()
    if (last and not is_last(x)) or x.is_neg():
        return None
    running, rates = cpp.running_arguments(norm.running)
    dtype, (samples, channels, *_) = statistics_dtype(x), x.shape
    statistics = x.new_empty(2 * channels, dtype=dtype)
    if isinstance(rates[0], Tensor) or not all_like(statistics, weight, bias, *running):
        return None
    whole, values = samples * channels, x.numel()
    sizes = (samples, channels, values // whole, last, cpp.threads(values))
    work, line = statistics.new_empty(5 * whole), torch.empty_like(statistics)
    given = cpp.pointers(x, weight, bias, *running, work, statistics, line)
    load()["region_normalize", x.dtype](*given, norm.eps, *rates, *sizes)
    return RegionNumbers(work, statistics, line, sizes)


def attend(
    x: Tensor,
    numbers: RegionNumbers,
    bias: Tensor | None,
    fixed: bool,
    activation: Activation,
    layers: RegionLayers,
    parameters: Parameters,
) -> Tensor:
    """Compute an attention (:meth:`.region_interface.RegionCalls.attend`)."""
    samples, channels, *_ = sizes = numbers.sizes
    hidden = samples * layers.width if layers.kind == "two" else 0
    attended = numbers.work.new_empty(2 * samples * channels + hidden)
    scratch = numbers.work.new_empty(hidden) if hidden else None
    given = cpp.pointers(
        *(x, numbers.work, numbers.statistics, bias, attended, scratch), *four(parameters)
    )
    run = _load_for(activation.name)["region_attend", x.dtype]
    run(*given, activation.alpha, fixed, *_described(layers), *sizes)
    return attended


def write(
    x: Tensor,
    numbers: RegionNumbers,
    attended: Tensor | None,
    shortcut: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Write the output of the activation or, given its numbers, of the attention."""
    *_, last, _ = sizes = numbers.sizes
    step = sizes[0] * sizes[1] * numbers.work.element_size()
    one = numbers.work.data_ptr() + 2 * step
    s = one if attended is None else attended.data_ptr() + step
    y = torch.empty_like(x)
    joined = None if shortcut is None else like(shortcut, last)
    first, *of_maps = cpp.pointers(x, joined, y)
    run = activated_cpp.load(activation.name)["activate", x.dtype]
    run(first, one + step, one + 2 * step, s, *of_maps, activation.alpha, *sizes)
    return y


def write_sum(x: Tensor, numbers: RegionNumbers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Write the output of the norm, after an addition and a ReLU."""
    *_, last, _ = sizes = numbers.sizes
    step = sizes[0] * sizes[1] * numbers.work.element_size()
    scale = numbers.work.data_ptr() + 3 * step
    y = torch.empty_like(x)
    joined = None if shortcut is None else like(shortcut, last)
    first, *of_maps = cpp.pointers(x, joined, y)
    cpp.load()["affine", x.dtype](first, scale, scale + step, *of_maps, relu, *sizes)
    return y


def gradient(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    statistics: Tensor,
    line: Tensor,
    attended: Tensor | None,
    weight: Tensor | None,
    fixed: bool,
    activation: Activation,
    layers: RegionLayers | None,
    parameters: Parameters,
    sizes: Sizes,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate it in one call (:meth:`.region_interface.RegionCalls.gradient`)."""
    samples, channels, _, last, _ = sizes
    dy, x = like(dy, last), like(x, last)
    described = _NO_LAYERS if layers is None else _described(layers)
    hidden = samples * described[1] if described[0] == _KINDS["two"] else 0
    scratch = line.new_empty(8 * samples * channels + 2 * hidden)
    dx = torch.empty_like(x) if needs_dx else None
    g = dy if y is None else torch.empty_like(x)
    of_norm = line.new_empty((2, channels)).unbind()
    first, _, second, _ = four(parameters)
    of_layers = tuple([None if p is None else torch.empty_like(p) for p in parameters])
    mask = None if y is None else like(y, last)
    given = (dy, x, mask, statistics, line, attended, scratch, weight, first, second, g, dx)
    addresses = cpp.pointers(*given, *of_norm, *four(of_layers))
    run = _load_for(activation.name)["region_gradient", x.dtype]
    run(*addresses, activation.alpha, fixed, *described, *sizes)
    return dx, g, (*of_norm, *of_layers)


def sum_gradient(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    statistics: Tensor,
    weight: Tensor | None,
    fixed: bool,
    sizes: Sizes,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate it in one call (:meth:`.region_interface.RegionCalls.sum_gradient`)."""
    samples, channels, _, last, _ = sizes
    dy, x = like(dy, last), like(x, last)
    scratch = statistics.new_empty(4 * samples * channels)
    dx = torch.empty_like(x) if needs_dx else None
    g = dy if y is None else torch.empty_like(x)
    d_weight, d_bias = statistics.new_empty((2, channels)).unbind()
    mask = None if y is None else like(y, last)
    given = cpp.pointers(dy, x, mask, statistics, scratch, weight, g, dx, d_weight, d_bias)
    load()["sum_gradient", x.dtype](*given, fixed, *sizes)
    return dx, g, (d_weight, d_bias)


def _described(layers: RegionLayers) -> tuple[int, int, int, float, int]:
    inner = layers.inner
    number = ACTIVATIONS.index(inner.name)
    return _KINDS[layers.kind], layers.width, number, inner.alpha, cpp.GATES[layers.gate]
