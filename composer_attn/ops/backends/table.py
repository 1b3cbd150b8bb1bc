"""Which implementation of the passes runs, and what happens where it cannot.

===========  ===================================================================================
backend      passes
===========  ===================================================================================
auto         CUDA: triton; CPU: cpp; elsewhere, or for a dtype these do not take: reference
reference    plain torch (:mod:`.reference`)
inductor     the reference, each pass compiled by ``torch.compile``
triton       hand-written Triton kernels, CUDA
cpp          hand-written C++, CPU, built at first use by the machine's compiler
===========  ===================================================================================

A backend is a line in ``_TABLE``, and two modules beside this one that have what
:mod:`.interface` lists.
"""

import importlib
import os
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from composer_attn.errors import ArgumentError, BackendWarning
from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import activated_reference, reference
from composer_attn.ops.backends.interface import ActivatedPasses, Passes

if TYPE_CHECKING:
    from composer_attn.ops.backends import (
        activated_cpp,
        activated_inductor,
        activated_triton_kernels,
        cpp,
        inductor,
        triton_kernels,
    )

    # What is loaded by name below, and has to have everything.
    _PASSES: list[Passes] = [reference, inductor, triton_kernels, cpp]
    _ACTIVATED: list[ActivatedPasses] = [
        activated_reference,
        activated_inductor,
        activated_triton_kernels,
        activated_cpp,
    ]


@dataclass(frozen=True)
class Backend:
    """Where the passes of a backend are, and which feature maps they take.

    Attributes:
        passes: module of :class:`.interface.Passes`.
        activated: module of :class:`.interface.ActivatedPasses`.
        devices: types of devices that the feature maps may be on; empty for any.
        dtypes: their dtypes; empty for any.
        built: whether something is built before the first pass can run.
    """

    passes: str
    activated: str
    devices: Collection[str] = ()
    dtypes: Collection[torch.dtype] = ()
    built: bool = False

    def takes(self, x: Tensor) -> bool:
        """Say whether the passes take such a feature map."""
        on_device = not self.devices or x.device.type in self.devices
        return on_device and (not self.dtypes or x.dtype in self.dtypes)


_WIDE = (torch.float32, torch.float64)
# Triton's interpreter runs kernels on a CPU, to test them.
_CUDA = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
_TABLE = {
    "reference": Backend("reference", "activated_reference"),
    "inductor": Backend("inductor", "activated_inductor"),
    "triton": Backend(
        "triton_kernels",
        "activated_triton_kernels",
        devices=_CUDA,
        dtypes=(torch.float16, torch.bfloat16, *_WIDE),
        built=True,
    ),
    "cpp": Backend(
        "cpp", "activated_cpp", devices=("cpu",), dtypes=(torch.bfloat16, *_WIDE), built=True
    ),
}
_AUTO = {"cpu": "cpp", "cuda": "triton"}
BACKENDS = ("auto", *_TABLE)


def check_backend(name: str) -> str:
    """Return the name of a backend if it is one.

    Raises:
        ArgumentError: it is not; the message lists the names.

    Example:
        >>> check_backend("auto")
        'auto'
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


def find_passes(name: str, x: Tensor) -> Passes:
    """Find the passes that a backend runs over ``x``: the reference where it cannot."""
    name = _chosen(name, x)
    passes = _ready(name)  # which warns where it is not there
    return passes if _TABLE[name].takes(x) else reference


def find_activated(name: str, x: Tensor, activation: Activation) -> ActivatedPasses:
    """Find the passes of an activation (:mod:`.activated_reference`), likewise."""
    name = _chosen(name, x)
    # What is not there for the other passes has been warned of, and is not there for these.
    if _ready(name) is reference or not _TABLE[name].takes(x):
        return activated_reference
    return _ready_for(name, activation.name)


def _chosen(name: str, x: Tensor) -> str:
    return _AUTO.get(x.device.type, "reference") if name == "auto" else name


def prepare(name: str, devices: Iterable[torch.device]) -> None:
    """Build what a backend runs over feature maps on these devices, before anything is timed.

    The first pass would build it otherwise: of C++, seconds to minutes within a training step.

    Warns:
        BackendWarning: it cannot be built; the reference will take its place.
    """
    for device in dict.fromkeys(device.type for device in devices):
        found = _AUTO.get(device, "reference") if name == "auto" else name
        if _TABLE[found].built and device in _TABLE[found].devices:
            _ready(found)


@cache
def _ready(name: str) -> Passes:
    """Import and build a backend once; where that fails, say so once, and use the reference."""
    try:
        passes = cast(Passes, _module(_TABLE[name].passes))
        passes.load()
    # Whatever a compiler does wrong, a training run goes on without it.
    except Exception as error:
        _warn(name, error)
        return reference
    return passes


@cache
def _ready_for(name: str, activation: str) -> ActivatedPasses:
    """Do likewise for an activation, when it is first met."""
    try:
        passes = cast(ActivatedPasses, _module(_TABLE[name].activated))
        passes.load(activation)
    except Exception as error:
        _warn(name, error)
        return activated_reference
    return passes


def _module(file: str) -> object:
    return importlib.import_module(f"composer_attn.ops.backends.{file}")


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"the {name} backend is not available here, and the slower reference takes its place: "
        f"{error}",
        BackendWarning,
        stacklevel=3,
    )
