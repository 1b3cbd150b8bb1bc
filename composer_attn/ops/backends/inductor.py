"""The four passes of the reference, each compiled on its own by ``torch.compile``.

Sizes are dynamic: one kernel serves all shapes of its layout and dtype. The passes are compiled
individually, since the manual backward moves less memory than one derived by the compiler.
"""

import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from composer_attn.errors import BackendWarning
from composer_attn.ops.backends import reference as passes
from composer_attn.ops.logits import convolve, convolve_gradient
from composer_attn.ops.normalization import normalization, normalization_gradient

__all__ = [
    "affine",
    "convolve",
    "convolve_gradient",
    "gradient_sums",
    "input_gradient",
    "load",
    "moments",
    "normalization",
    "normalization_gradient",
]

_broken: list[Exception] = []


def load() -> None:
    """Do nothing: the first call compiles, once the layout is known."""


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over space (:func:`.reference.moments`)."""
    return _run("moments", x)


def affine(x: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Compute ``scale x + shift [+ shortcut]`` (:func:`.reference.affine`)."""
    return _run("affine", x, scale, shift, shortcut, relu).view_as(x)


def gradient_sums(
    dy: Tensor, x: Tensor, centre: Tensor, mask: tuple[Tensor, Tensor] | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum a gradient over space (:func:`.reference.gradient_sums`)."""
    first, second, g = _run("gradient_sums", dy, x, centre, mask)
    return first, second, g.view_as(x) if isinstance(mask, Tensor) else dy


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
    return _run("input_gradient", dy, x, slope, mean, d_mean, d_variance, shift).view_as(x)


def _run(name: str, *arguments: Any) -> Any:
    return run(getattr(passes, name), *arguments)


def run(original: Callable, *arguments: Any) -> Any:
    """Run a pass over feature maps flattened to ``(N, C, L)``, for fewer kernels."""
    flat = [a.flatten(2) if isinstance(a, Tensor) and a.dim() > 3 else a for a in arguments]
    if not _broken:
        try:
            return _compiled(original, *map(_kind, flat))(*flat)
        except Exception as error:
            _broken.append(error)
            warnings.warn(
                f"torch.compile fails here, and the slower reference is used instead: {error}",
                BackendWarning,
                stacklevel=2,
            )
    return original(*flat)


def _kind(argument: Any) -> Any:
    """Return the properties of an argument on which a kernel is specialized."""
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    if isinstance(argument, Tensor):
        sizes = tuple(size == 1 for size in argument.shape)
        return argument.dtype, argument.device, argument.is_contiguous(), sizes
    return argument


@cache
def _compiled(original: Callable, *kinds: Any) -> Callable:
    """Compile a pass for arguments with the given properties.

    Dynamo counts recompilations per code object, and gives up at the eighth: hence the copies.
    """
    copy = FunctionType(original.__code__.replace(), original.__globals__, original.__name__)
    return torch.compile(copy, dynamic=True, fullgraph=True)
