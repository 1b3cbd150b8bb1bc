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
"""

import importlib
import warnings
from collections.abc import Iterable
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from composer_attn.errors import ArgumentError, BackendWarning
from composer_attn.ops.activations import Activation
from composer_attn.ops.backends import activated_reference as activated
from composer_attn.ops.backends import reference as passes

BACKENDS = ("auto", "reference", "inductor", "triton", "cpp")
_MODULES = {"inductor": "inductor", "triton": "triton_kernels", "cpp": "cpp"}
# The passes that an activation takes part in.
_ACTIVATED = {
    "inductor": "activated_inductor",
    "triton": "activated_triton_kernels",
    "cpp": "activated_cpp",
}  # fmt: skip
_AUTO = {"cpu": "cpp", "cuda": "triton"}
# Where those run that are built before they run; inductor compiles once it sees the tensors.
_HOMES = {"cpp": "cpu", "triton": "cuda"}


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


def find_passes(name: str, x: Tensor) -> ModuleType:
    """Find the passes that a backend runs over ``x``: the reference where it cannot."""
    name = _chosen(name, x)
    module = passes if name == "reference" else _ready(name)
    return module if module.supports(x) else passes


def find_activated(name: str, x: Tensor, activation: Activation) -> ModuleType:
    """Find the passes of an activation (:mod:`.activated_reference`), likewise."""
    name = _chosen(name, x)
    # What is not there for the other passes has been warned of, and is not there for these.
    if name == "reference" or _ready(name) is passes:
        return activated
    module = _ready(name, activation.name)
    return module if module.supports(x) else activated


def _chosen(name: str, x: Tensor) -> str:
    return _AUTO.get(x.device.type, "reference") if name == "auto" else name


def prepare(name: str, devices: Iterable[torch.device], activations: Iterable[str] = ()) -> None:
    """Build what a backend runs over feature maps on these devices, before anything is timed.

    The first pass would build it otherwise: of C++, seconds to minutes within a training step.

    Args:
        name: the backend's.
        devices: where it is to run.
        activations: names of those that it is to compute, besides a ReLU after a norm.

    Warns:
        BackendWarning: it cannot be built; the reference will take its place.
    """
    for device in dict.fromkeys(device.type for device in devices):
        found = _AUTO.get(device, "reference") if name == "auto" else name
        if _HOMES.get(found) == device and _ready(found) is not passes:
            for activation in dict.fromkeys(activations):
                _ready(found, activation)


@cache
def _ready(name: str, activation: str = "") -> ModuleType:
    """Import and build a backend once; where that fails, say so once, and use the reference.

    An activation is built when it is first met.
    """
    try:
        file = (_ACTIVATED if activation else _MODULES)[name]
        module = importlib.import_module(f"composer_attn.ops.backends.{file}")
        module.load(*([activation] if activation else []))
    # Whatever a compiler does wrong, a training run goes on without it.
    except Exception as error:
        warnings.warn(
            f"the {name} backend is not available here, and the slower reference takes its "
            f"place: {error}",
            BackendWarning,
            stacklevel=2,
        )
        return activated if activation else passes
    return module
