"""Hooks on module and parameter registration, so that attention is never lost silently.

torch calls a hook for every module that is registered as a child. Conversions of norms (to frozen
ones, to ``SyncBatchNorm``) build a new norm and register it, some with the children of the old one:
the attention is transferred to it. Any other replacement that would drop attention raises an error.
"""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import TypeGuard
from weakref import WeakSet

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from composer_attn.errors import AttentionRemovedError, ModelError
from composer_attn.surgery.attend import (
    CHILD,
    MARK,
    attended_class,
    attended_side,
    is_attended,
    set_class,
)
from composer_attn.surgery.folding import (
    ADVICE,
    CONVOLUTIONS,
    Convolution,
    is_rescaled_by,
    norms_of_caller,
)

# Attentions of modules that may be replaced: their algorithm notices, and reports the cause.
_guarded: "WeakSet[nn.Module]" = WeakSet()


def leave_to_guard(attentions: Collection[nn.Module]) -> None:
    """Allow the modules of these attentions to be replaced: the caller detects and reports it."""
    _guarded.update(attentions)


def end_guard(attentions: Collection[nn.Module]) -> None:
    """Undo :func:`leave_to_guard`."""
    for attention in attentions:
        _guarded.discard(attention)


def side_of(attention: nn.Module | None) -> str:
    """Return the side recorded on an attention by a surgery; empty for a standalone one."""
    return "" if attention is None else vars(attention).get(MARK, "")


def is_norm(module: nn.Module | None) -> TypeGuard[nn.Module]:
    """Return whether a module normalizes channels, including frozen and third-party norms."""
    known = isinstance(module, (_NormBase, nn.GroupNorm))
    return known or getattr(module, "running_var", None) is not None


def _neighbours(parent: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the pairs of a convolution and the norm right after it among a module's children."""
    for conv, norm in pairwise(parent._modules.values()):
        if isinstance(conv, CONVOLUTIONS) and is_norm(norm):
            yield conv, norm


def _on_registration(holder: nn.Module, name: str, new: nn.Module | None) -> None:
    if name == CHILD and is_attended(holder) and new is not None:
        vars(new)[MARK] = attended_side(holder)  # the attention is replaced by another one
    elif name == CHILD and side_of(new) and is_norm(holder):
        set_class(holder, attended_class(type(holder), side_of(new)))
    # Scripted modules keep their children in a container of a different type.
    old = holder._modules.get(name) if isinstance(holder._modules, dict) else None
    if old is None:
        return
    if is_attended(old) and old is not new:
        _replace(name, old, new)
    elif old is not new and isinstance(new, CONVOLUTIONS) and any(map(is_attended, old.modules())):
        if not any(map(is_attended, new.modules())):
            raise AttentionRemovedError(
                f"{name}, a {type(old).__name__} with attended modules in it, is replaced by a "
                f"{type(new).__name__}, as by folding: {ADVICE}"
            )
    elif is_norm(old) and (new is None or type(new) is nn.Identity):
        _check_norm_stays(holder, name, old)
    elif old is not new and isinstance(new, CONVOLUTIONS) and isinstance(old, CONVOLUTIONS):
        _check_nothing_folded(holder, name, old, new)


def _replace(name: str, old: nn.Module, new: nn.Module | None) -> None:
    """Transfer attention from one norm to another; raise an error if it would be lost."""
    attention = old._modules[CHILD]
    if new is not None and any(m is attention or is_attended(m) for m in new.modules()):
        return  # a wrapper around the old module, or a module that is attended itself
    if is_norm(old) and is_norm(new) and _width(new) == _width(old):
        new._modules[CHILD] = attention
        for key in ("_attn_dimensions", "_attn_fused"):
            if key in vars(old):
                vars(new)[key] = vars(old)[key]
        set_class(new, attended_class(type(new), attended_side(old)))
    elif attention not in _guarded:
        raise AttentionRemovedError(
            f"{name}, an attended {type(old).__name__.removeprefix('Attended')}, is replaced by "
            f"{'None' if new is None else f'a {type(new).__name__}'}, which would drop its "
            "attention: replace or fold modules before the surgery, or call detach_attention first"
        )


def _width(norm: nn.Module) -> int:
    held = (norm._parameters.get("weight"), *norm._buffers.values(), *norm._parameters.values())
    of_channels = (len(tensor) for tensor in held if tensor is not None and tensor.dim() == 1)
    counts = (getattr(norm, name, None) for name in ("num_features", "num_channels"))
    return next(filter(None, counts), None) or next(of_channels, 0)


def _check_norm_stays(holder: nn.Module, name: str, norm: nn.Module) -> None:
    for conv, following in _neighbours(holder):
        if following is norm and is_attended(conv) and attended_side(conv) == "output":
            raise ModelError(
                f"{name}, the {type(norm).__name__} after an attended "
                f"{type(conv).__name__.removeprefix('Attended')}, is removed, as after folding it "
                f"into the convolution, whose attention would see different values: {ADVICE}"
            )


def _check_nothing_folded(holder: nn.Module, name: str, old: Convolution, new: Convolution) -> None:
    """Reject a convolution into which the attended norm after it was folded."""
    for conv, norm in _neighbours(holder):
        if conv is not old or not is_attended(norm):
            continue
        gains_bias = old.bias is None and new.bias is not None
        if gains_bias or is_rescaled_by(norm, old.weight, new.weight):
            how = f"is replaced by a {type(new).__name__}"
            raise ModelError(_folded(f"{name}, the convolution before an attended norm,", how))


def _on_parameter(conv: nn.Module, name: str, value: nn.Parameter) -> None:
    """Reject a bias where there was none, and weights multiplied by the scale of a norm."""
    if not isinstance(conv, CONVOLUTIONS) or name not in conv._parameters:
        return
    attends = is_attended(conv) and attended_side(conv) == "output"
    norms = [norm for norm in norms_of_caller() if attends or is_attended(norm)]
    held = conv._parameters[name]
    if name == "bias" and held is None and (attends or norms):
        kind = "an attended convolution" if attends else "a convolution"
        raise ModelError(_folded(kind, "is given a bias that it did not have"))
    if name == "weight" and any(is_rescaled_by(norm, held, value) for norm in norms):
        kind = "an attended convolution" if attends else "a convolution before an attended norm"
        raise ModelError(_folded(kind, "is given its weights multiplied by the scale of a norm"))


def _folded(what: str, how: str) -> str:
    return (
        f"{what} {how}, as by folding a batch norm into it: attention between or after "
        f"the two would be lost, or see different values: {ADVICE}"
    )


register_module_module_registration_hook(_on_registration)
register_module_parameter_registration_hook(_on_parameter)
