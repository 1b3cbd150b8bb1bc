"""Detect code that folds a batch norm into a convolution when either of them is attended.

``norm(attention(conv(x)))`` is not a convolution, and cannot be computed by ``attention(conv(x))``
with the norm's scale folded into the convolution's weights. Folding code (in torch, detectors and
other packages) does not check: it assigns the convolution new weights, or a bias it did not have.
"""

import sys
from contextlib import suppress
from importlib import import_module
from itertools import product
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.errors import ModelError

fuser_method_mappings: Any = None
with suppress(ImportError):  # versions of torch that have moved it to another package
    fuser_method_mappings = import_module("torch.ao.quantization.fuser_method_mappings")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

ADVICE = (
    "composer_attn.fold_norms(model) folds an attended network's norms and keeps its attention "
    "right; else fold before the surgery, or call detach_attention first (it returns the trained "
    "attentions)"
)


def is_rescaled_by(norm: nn.Module, old: Tensor | None, new: Tensor | None) -> bool:
    """Return whether new weights of a convolution are the old ones times the scale of a norm."""
    if old is None or new is None or old.shape != new.shape or old.is_meta or new.is_meta:
        return False
    held: Any = norm  # any norm with running statistics has these, whichever package defines it
    variance, weight = held.running_var, held.weight
    if variance is None or variance.numel() != len(old) or variance.device != old.device:
        return False
    scale = torch.rsqrt(variance + held.eps) * (1 if weight is None else weight.detach())
    expected = old.detach() * scale.reshape(-1, *[1] * (old.dim() - 1))
    return torch.allclose(new.detach().double(), expected.double(), rtol=1e-3)


def norms_of_caller() -> list[nn.Module]:
    """List the batch norms among the locals of the function that assigns a parameter.

    New weights alone do not distinguish folding from re-initialization; with the norm they do.
    """
    frame: FrameType | None = sys._getframe(1)
    on_the_way = ("torch.nn.modules.module", "composer_attn.surgery.registration", __name__)
    while frame is not None and frame.f_globals.get("__name__") in on_the_way:
        frame = frame.f_back
    held = [] if frame is None else list(frame.f_locals.values())
    return [value for value in held if isinstance(value, _BatchNorm)]


def _refuse_fuse_modules(is_qat: bool, *modules: nn.Module) -> None:
    kinds = ", ".join(type(module).__name__ for module in modules)
    raise ModelError(
        f"fuse_modules cannot fold {kinds}, of which one is attended or computed jointly with an "
        f"attended module: {ADVICE}"
    )


_extensions: dict[type, list[type]] = {}
_origins: dict[type, type] = {}


def refuse_fuse_modules(cls: type, original: type) -> None:
    """Make ``torch.ao.quantization.fuse_modules`` raise a ModelError for an extended class.

    It looks modules up by exact class, and fails on unknown ones with a bare AssertionError.

    Args:
        cls: the extending class.
        original: the class that it extends.
    """
    try:
        table = fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
    except AttributeError:
        return
    plain = [kinds for kinds, fuser in table.items() if fuser is not _refuse_fuse_modules]
    origin = _origins.get(original, original)
    if not any(origin in kinds for kinds in plain):
        return
    _origins[cls] = origin
    _extensions.setdefault(origin, []).append(cls)
    for kinds in plain:
        for combination in product(*([kind, *_extensions.get(kind, ())] for kind in kinds)):
            if combination != kinds:
                table[combination] = _refuse_fuse_modules
