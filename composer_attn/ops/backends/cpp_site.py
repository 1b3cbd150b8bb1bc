"""A whole site in C++: attention and batch norm in two calls and one for the gradient.

All ``(N, C)`` numbers of a site stay in one workspace (``cpp_sources/site.h``). On small feature
maps a network's time is that of Python's calls, of which this needs few: ``benchmarks/train_step``
on 32x32 images, and ``benchmarks/inference`` at batch 1.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from composer_attn.ops.backends import cpp
from composer_attn.ops.backends.cpp_blas import give_blas
from composer_attn.ops.backends.cpp_build import build
from composer_attn.ops.backends.layout import all_like, like
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.region_interface import four
from composer_attn.ops.logits import Parameters
from composer_attn.ops.normalization import Running

_ARGUMENTS = {
    "excite": [ctypes.c_void_p] * 3 + cpp.SIZES,
    "site_gradient": [ctypes.c_void_p] * 16
    + [ctypes.c_bool] * 2
    + [ctypes.c_int64, ctypes.c_int, ctypes.c_bool]
    + cpp.SIZES,
}
# Of float32 and float64 alone: numbers, or maps in evaluation.
_WIDE_ARGUMENTS: dict[str, list] = {
    "site_normalize": [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3,
    "attend": [ctypes.c_void_p] * 2 + cpp.SIZES,
    "attended_weights": [ctypes.c_void_p] * 6 + [ctypes.c_int64, *cpp.SIZES[1:]],
}
GATES = cpp.GATES
WIDE = (torch.float32, torch.float64)


# Structures of ``cpp_sources/site.h``: what stays the same from call to call is converted once.
class LayersStructure(ctypes.Structure):
    """The layers and gate of an attention, and of a norm that was folded around it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2")),
        *((name, ctypes.c_void_p) for name in ("inverse", "post", "shift")),
        ("width", ctypes.c_int64),
        ("gate", ctypes.c_int),
        ("is_kernel", ctypes.c_bool),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("weight", "bias", "running_mean", "running_variance")),
        *((name, ctypes.c_double) for name in ("eps", "momentum")),
        ("fixed", ctypes.c_bool),
    ]


class CppLayers(NamedTuple):
    """The layers and gate of an attention, as addresses: no tensor may be moved meanwhile."""

    is_kernel: bool
    width: int
    gate: int
    structure: LayersStructure
    address: int


class CppNorm(NamedTuple):
    """A batch norm likewise."""

    structure: _Norm
    address: int


class CppSite(NamedTuple):
    """What the calls of a site share.

    Attributes:
        is_kernel: whether the layers are a convolution along the channels, not two linear layers.
        width: size of the kernel, or number of hidden channels.
        gate: number of the gate in :data:`.cpp.GATES`.
        sizes: the last arguments of a pass: samples, channels, positions, whether the map is
            channels last, threads.
    """

    is_kernel: bool
    width: int
    gate: int
    sizes: tuple[int, int, int, bool, int]

    def views(self, work: Tensor) -> list[Any]:
        """Return views of a workspace: mean, variance, s, scale, shift; mu, inverse; hidden."""
        samples, channels, *_ = self.sizes
        whole = samples * channels
        hidden = 0 if self.is_kernel else samples * self.width
        *numbers, mu, inverse, kept = work.split([whole] * 5 + [channels] * 2 + [hidden])
        hidden_view = None if self.is_kernel else kept.view(samples, self.width)
        return [*(each.view(samples, channels) for each in numbers), mu, inverse, hidden_view]


@cache
def _library() -> ctypes.CDLL:
    return build(cpp.FOLDER / "passes.cpp")


def load() -> None:
    """Build what the functions need."""
    cpp.load()


@cache
def is_available() -> bool:
    """Return whether the calls can be used: they need the BLAS that torch contains."""
    return give_blas(_library())


@cache
def functions() -> dict[tuple[str, torch.dtype], cpp.Function]:
    """Return the functions by name and dtype, building them if necessary."""
    of_maps = cpp.functions(_library(), _ARGUMENTS, cpp.DTYPES)
    return of_maps | cpp.functions(_library(), _WIDE_ARGUMENTS, WIDE)


def prepare_layers(is_kernel: bool, gate: int, parameters: Parameters) -> CppLayers:
    """Prepare the layers of an attention.

    Args:
        is_kernel: whether the one parameter is a kernel; otherwise there are two linear layers.
        gate: number of the gate in :data:`.cpp.GATES`.
        parameters: contiguous parameters, in the dtype of the statistics.
    """
    structure = layers_of(is_kernel, gate, parameters)
    address = ctypes.addressof(structure)
    return CppLayers(is_kernel, structure.width, gate, structure, address)


def layers_of(
    is_kernel: bool, gate: int, parameters: Parameters, folded: Parameters = (None, None, None)
) -> LayersStructure:
    """Return the structure; ``folded`` are inverse, post and shift."""
    first = cast(Tensor, parameters[0])  # only biases can be absent
    width = first.numel() if is_kernel else first.size(0)
    return LayersStructure(*cpp.pointers(*four(parameters), *folded), width, gate, is_kernel)


def excite(x: Tensor, last: bool, layers: CppLayers) -> tuple[CppSite, Tensor]:
    """Compute moments and scales of a feature map.

    Args:
        x: the map ``(N, C, *spatial)``, dense.
        last: whether it is channels last, not NCHW.
        layers: the prepared layers.

    Returns:
        The site, and the workspace.
    """
    is_kernel, width, gate, _, address = layers
    samples, channels, *_ = x.shape
    whole, values = samples * channels, x.numel()
    sizes = (samples, channels, values // whole, last, cpp.threads(values))
    size = 5 * whole + 2 * channels + (0 if is_kernel else samples * width)
    work = x.new_empty(size, dtype=statistics_dtype(x))
    functions()["excite", x.dtype](x.data_ptr(), address, work.data_ptr(), *sizes)
    return CppSite(is_kernel, width, gate, sizes), work


def prepare_norm(
    work: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, running: Running | None
) -> CppNorm | None:
    """Prepare a batch norm, unless the dtype of its tensors or its momentum rule it out."""
    kept, (momentum, _, fixed) = cpp.running_arguments(running)
    if isinstance(momentum, Tensor) or not all_like(work, weight, bias, *kept):
        return None
    structure = _Norm(*cpp.pointers(weight, bias, *kept), eps, momentum, fixed)
    return CppNorm(structure, ctypes.addressof(structure))


def normalize(site: CppSite, work: Tensor, norm: CppNorm, number: int) -> None:
    """Normalize the scaled map, up to scale and shift, with a number of values per channel."""
    samples, channels, *_ = site.sizes
    given = (norm.address, work.data_ptr(), number, samples, channels)
    functions()["site_normalize", work.dtype](*given)


def write(site: CppSite, work: Tensor, x: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Write the normalized map, after an addition and a ReLU."""
    last = site.sizes[3]
    x = like(x, last)
    y = torch.empty_like(x)
    shortcut = None if shortcut is None else like(shortcut, last)
    step = site.sizes[0] * site.sizes[1] * work.element_size()
    scale = work.data_ptr() + 3 * step
    joined = None if shortcut is None else shortcut.data_ptr()
    maps = (x.data_ptr(), scale, scale + step, joined, y.data_ptr())
    cpp.load()["affine", x.dtype](*maps, relu, *site.sizes)
    return y


def gradient(
    site: CppSite,
    work: Tensor,
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    relu: bool,
    fixed: bool,
    weight: Tensor | None,
    parameters: Parameters,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate all of it.

    Args:
        site: the site.
        work: its workspace.
        dy: gradient of the output.
        x: the map that was read.
        y: the output if it ends in an addition and a ReLU, which masks the gradient.
        relu: whether it ends in a ReLU.
        fixed: whether the norm is independent of the batch.
        weight: weight of the norm.
        parameters: those of the layers.
        needs_dx: whether the gradient of ``x`` is needed.

    Returns:
        The gradient of ``x``, that of the sum before the ReLU, and those of weight, bias, layers.
    """
    last = site.sizes[3]
    dy, x = like(dy, last), like(x, last)
    samples, channels, *_ = site.sizes
    whole = samples * channels
    rest = max(whole, 0 if site.is_kernel else samples * site.width)
    scratch = work.new_empty(5 * whole + rest)
    dx = torch.empty_like(x) if needs_dx else None
    g = dy if y is None else torch.empty_like(x)
    of_norm = work.new_empty((2, channels)).unbind()
    of_layers = [None if each is None else torch.empty_like(each) for each in parameters]
    given = (dy, x, None if y is None else like(y, last), work, scratch, weight)
    layers = (parameters[0], None if site.is_kernel else parameters[2])
    tensors = (*given, *layers, g, dx, *of_norm, *of_layers, *[None] * (4 - len(of_layers)))
    pointers = [None if each is None else each.data_ptr() for each in tensors]
    functions()["site_gradient", x.dtype](
        *pointers, relu, site.is_kernel, site.width, site.gate, fixed, *site.sizes
    )
    return dx, g, (*of_norm, *of_layers)
