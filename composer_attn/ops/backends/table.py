"""The table of backends, the selection of one, and the fallback to the reference.

===========  ===================================================================================
backend      passes
===========  ===================================================================================
auto         CUDA: triton; CPU: cpp; other devices and unsupported dtypes: reference
reference    plain torch (:mod:`.reference`)
inductor     the reference, each pass compiled by ``torch.compile``
triton       hand-written Triton kernels, CUDA
cpp          hand-written C++, CPU, built at first use by the installed compiler
===========  ===================================================================================

A backend is a line in ``_TABLE``, and two modules beside this one that implement
:mod:`.interface`.
"""

import importlib
import os
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from composer_attn.errors import ArgumentError, BackendWarning
from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import activated_reference, reference
from composer_attn.ops.backends.interface import ActivatedPasses, Passes, SiteCalls
from composer_attn.ops.backends.region_interface import RegionCalls

if TYPE_CHECKING:
    from composer_attn.ops.backends import (
        activated_cpp,
        activated_inductor,
        activated_triton_kernels,
        cpp,
        cpp_region,
        cpp_site,
        inductor,
        triton_kernels,
        triton_region,
        triton_site,
    )

    # Checked by mypy against the interface; the modules are loaded by name below.
    _PASSES: list[Passes] = [reference, inductor, triton_kernels, cpp]
    _ACTIVATED: list[ActivatedPasses] = [
        activated_reference,
        activated_inductor,
        activated_triton_kernels,
        activated_cpp,
    ]
    _SITE_CALLS: list[SiteCalls] = [cpp_site, triton_site]
    _REGIONS: list[RegionCalls] = [cpp_region, triton_region]


@dataclass(frozen=True)
class Backend:
    """The modules of a backend, and the feature maps that it supports.

    Attributes:
        passes: name of the module that implements :class:`.interface.Passes`.
        activated: name of the module that implements :class:`.interface.ActivatedPasses`.
        devices: supported device types; empty for any.
        dtypes: supported dtypes; empty for any.
        built: whether something must be built before the first pass can run.
        sites: name of the module that implements :class:`.interface.SiteCalls`, if any.
        region: name of the module that implements :class:`.region_interface.RegionCalls`, if any.
    """

    passes: str
    activated: str
    devices: Collection[str] = ()
    dtypes: Collection[torch.dtype] = ()
    built: bool = False
    sites: str = ""
    region: str = ""

    def takes(self, x: Tensor) -> bool:
        """Return whether the passes support a feature map."""
        on_device = not self.devices or x.device.type in self.devices
        return on_device and (not self.dtypes or x.dtype in self.dtypes)


_WIDE = (torch.float32, torch.float64)
# Triton's interpreter runs kernels on a CPU, for tests.
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
        sites="triton_site",
        region="triton_region",
    ),
    "cpp": Backend(
        "cpp",
        "activated_cpp",
        devices=("cpu",),
        dtypes=(torch.bfloat16, *_WIDE),
        built=True,
        sites="cpp_site",
        region="cpp_region",
    ),
}
_AUTO = {"cpu": "cpp", "cuda": "triton"}
BACKENDS = ("auto", *_TABLE)


def check_backend(name: str) -> str:
    """Return ``name`` if it is the name of a backend.

    Raises:
        ArgumentError: it is not; the message lists the valid names.

    Example:
        >>> check_backend("auto")
        'auto'
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


def find_passes(name: str, x: Tensor) -> Passes:
    """Return the passes of a backend for ``x``, or the reference if it does not support ``x``."""
    name = _chosen(name, x)
    passes = _ready(name)  # warns if the backend is not available
    return passes if _TABLE[name].takes(x) else reference


def find_activated(name: str, x: Tensor, activation: Activation) -> ActivatedPasses:
    """Return the passes with an activation (:mod:`.activated_reference`), chosen likewise."""
    name = _chosen(name, x)
    # If the other passes are unavailable, which has been warned of, so are these.
    if _ready(name) is reference or not _TABLE[name].takes(x):
        return activated_reference
    return _ready_for(name, activation.name)


def find_region(name: str, x: Tensor) -> RegionCalls | None:
    """Return the calls for whole stages (:mod:`.region_interface`), if the backend has them."""
    name = _chosen(name, x)
    return _calls(name, x, _TABLE[name].region)


def find_sites(name: str, x: Tensor) -> SiteCalls | None:
    """Return the calls for whole sites (:class:`.interface.SiteCalls`) likewise."""
    name = _chosen(name, x)
    return _calls(name, x, _TABLE[name].sites)


def _calls(name: str, x: Tensor, file: str) -> Any:
    # If the passes are unavailable, which is warned of elsewhere, so are these.
    if not file or not _TABLE[name].takes(x) or _ready(name) is reference:
        return None
    found = _ready_calls(name, file)
    return found if found is not None and found.is_available() else None


@cache
def _ready_calls(name: str, file: str) -> Any:
    return _load(name, file)


def find_excited(name: str, x: Tensor) -> ModuleType | None:
    """Return the module that attends a feature map in place (:mod:`.excited_cpp`), if one can."""
    if x.dtype not in _WIDE or x.device.type != "cpu" or _chosen(name, x) != "cpp":
        return None
    return _ready_excited()


def prepare_excited(name: str) -> None:
    """Build that module before it is needed, if a backend has it; warns as :func:`prepare`."""
    if name in ("auto", "cpp"):
        _ready_excited()


@cache
def _ready_excited() -> ModuleType | None:
    return _load("cpp", "excited_cpp")


def _chosen(name: str, x: Tensor) -> str:
    return _AUTO.get(x.device.type, "reference") if name == "auto" else name


def prepare(name: str, devices: Iterable[torch.device], activations: Iterable[str] = ()) -> None:
    """Build a backend for feature maps on these devices, before anything is timed.

    Otherwise the first pass would build it: for C++, seconds to minutes within a training step.

    Args:
        name: the backend's.
        devices: where it is to run.
        activations: names of those that it is to compute, besides a ReLU after a norm.

    Warns:
        BackendWarning: it cannot be built; the reference will be used instead.
    """
    for device in dict.fromkeys(device.type for device in devices):
        found = _AUTO.get(device, "reference") if name == "auto" else name
        built = _TABLE[found].built and device in _TABLE[found].devices
        if built and _ready(found) is not reference:
            for activation in dict.fromkeys(activations):
                _ready_for(found, activation)


@cache
def _ready(name: str) -> Passes:
    return cast(Passes, _load(name, _TABLE[name].passes) or reference)


@cache
def _ready_for(name: str, activation: str) -> ActivatedPasses:
    found = _load(name, _TABLE[name].activated, activation)
    return cast(ActivatedPasses, found or activated_reference)


def _load(name: str, file: str, *arguments: str) -> ModuleType | None:
    """Import and build a module of a backend; if that fails, warn and return None."""
    try:
        module = importlib.import_module(f"composer_attn.ops.backends.{file}")
        module.load(*arguments)
    # Whatever goes wrong in a compiler, a training run should continue without it.
    except Exception as error:
        warnings.warn(
            f"the {name} backend is not available here, and the slower reference is used instead: "
            f"{error}",
            BackendWarning,
            stacklevel=3,
        )
        return None
    return module
