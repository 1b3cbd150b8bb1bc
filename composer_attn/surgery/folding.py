"""Folding a batch norm into an attended convolution, which others' code tries, is refused.

``norm(attention(conv(x)))`` is no convolution, nor is ``attention(conv(x))`` with the norm's scale
in the convolution's weights. What folds (torch, detectors, other packages) does not ask: it gives
the convolution other weights, or a bias that it did not have.
"""

import sys
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.ao.quantization import fuser_method_mappings
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

ADVICE = (
    "fold before the surgery, or call detach_attention first (it returns the trained attentions); "
    "torch.fx.experimental.optimization.fuse folds the other norms and leaves attended ones alone"
)


def check_not_folded(conv: nn.Module, name: str, value: nn.Parameter | None) -> None:
    """Refuse a parameter that folds a norm into an attended convolution.

    Args:
        conv: the attended module.
        name: of the parameter that it is given.
        value: the parameter.

    Raises:
        ModelError: it is a bias where there was none, or what the convolution has times the scale
            of a norm that the calling function holds. The parameter was not taken.
    """
    if value is None or not isinstance(conv, CONVOLUTIONS):
        return
    held = conv._parameters
    given_bias = name == "bias" and name in held and held[name] is None
    if given_bias or (name == "weight" and _is_rescaled_by_caller(held.get(name), value)):
        raise ModelError(
            f"an attended {type(conv).__name__.removeprefix('Attended')} is given a "
            f"{name} as by folding a batch norm into it, after which its attention would see other "
            f"numbers: {ADVICE}"
        )


def _is_rescaled_by_caller(old: Tensor | None, new: Tensor) -> bool:
    """Say whether new weights are the old ones times the scale of a norm that the caller holds."""
    if old is None or old.shape != new.shape or old.is_meta or new.is_meta:
        return False
    for norm in _norms_of_caller():
        variance, weight = norm.running_var, norm.weight
        if variance is None or variance.numel() != len(old) or variance.device != old.device:
            continue
        scale = (1 if weight is None else weight.detach()) / torch.sqrt(variance + norm.eps)
        expected = old.detach() * scale.reshape(-1, *[1] * (old.dim() - 1))
        if torch.allclose(new.detach().double(), expected.double(), rtol=1e-3):
            return True
    return False


def _norms_of_caller() -> Iterator[nn.Module]:
    """List the batch norms among the variables of the function that assigns a parameter.

    A weight alone does not tell a fold from a new initialization; with the norm at hand it does.
    """
    frame = sys._getframe(1)
    own = ("torch.nn.modules.module", "composer_attn.surgery.attend", __name__)
    while frame is not None and frame.f_globals.get("__name__") in own:
        frame = frame.f_back
    for value in list(frame.f_locals.values()) if frame is not None else ():
        if isinstance(value, _BatchNorm):
            yield value


def _refuse_fuse_modules(is_qat: bool, *modules: nn.Module) -> None:
    kinds = ", ".join(type(module).__name__ for module in modules)
    raise ModelError(
        f"fuse_modules cannot fold {kinds}, of which one is attended or computed jointly with an "
        f"attended module: {ADVICE}"
    )


_extensions: dict[type, list[type]] = {}
_origins: dict[type, type] = {}


def refuse_fuse_modules(cls: type, original: type) -> None:
    """Register a class of ours with ``torch.ao.quantization.fuse_modules``, to be refused clearly.

    It looks modules up by their exact class, and fails on others with a bare AssertionError.

    Args:
        cls: a class that extends another.
        original: what it extends.
    """
    table = getattr(fuser_method_mappings, "_DEFAULT_OP_LIST_TO_FUSER_METHOD", {})
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
