"""What happens when others put a module where an attended one stands, or above its attention.

torch tells of every module that is registered as a child. Conversions of norms (to frozen ones, to
``SyncBatchNorm``) build another norm and register it, some with the children of the old one:
attention goes over to it. Whatever else would lose attention in silence is an error at that moment.
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

# Attentions of modules that may be replaced: their algorithm looks after them, and says who did it.
_guarded: "WeakSet[nn.Module]" = WeakSet()


def leave_to_guard(attentions: Collection[nn.Module]) -> None:
    """Let the modules of these attentions be replaced: the caller notices, and says more of it."""
    _guarded.update(attentions)


def end_guard(attentions: Collection[nn.Module]) -> None:
    """Undo :func:`leave_to_guard`."""
    for attention in attentions:
        _guarded.discard(attention)


def side_of(attention: nn.Module | None) -> str:
    """Return what a surgery noted on an attention; empty for one that stands by itself."""
    return "" if attention is None else vars(attention).get(MARK, "")


def is_norm(module: nn.Module | None) -> TypeGuard[nn.Module]:
    """Say whether a module normalizes channels: torch's, frozen ones, those of other packages."""
    known = isinstance(module, (_NormBase, nn.GroupNorm))
    return known or getattr(module, "running_var", None) is not None


def _neighbours(parent: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """List the pairs of a convolution and a norm after it, among a module's children."""
    for conv, norm in pairwise(parent._modules.values()):
        if isinstance(conv, CONVOLUTIONS) and is_norm(norm):
            yield conv, norm


def _on_registration(holder: nn.Module, name: str, new: nn.Module | None) -> None:
    if name == CHILD and is_attended(holder) and new is not None:
        vars(new)[MARK] = attended_side(holder)  # another attention in the place of one
    elif name == CHILD and side_of(new) and is_norm(holder):
        set_class(holder, attended_class(type(holder), side_of(new)))
    # Scripted modules keep their children in a table of their own.
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
    """Let attention go over from one norm to another; refuse to lose it otherwise."""
    attention = old._modules[CHILD]
    if new is not None and any(m is attention or is_attended(m) for m in new.modules()):
        return  # a wrapper around the old one, or one that is attended itself
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
                f"{type(conv).__name__.removeprefix('Attended')}, is taken away, as after folding "
                f"it into the convolution, whose attention would see other numbers: {ADVICE}"
            )


def _check_nothing_folded(holder: nn.Module, name: str, old: Convolution, new: Convolution) -> None:
    """Refuse a convolution into which the attended norm after it was folded."""
    for conv, norm in _neighbours(holder):
        if conv is not old or not is_attended(norm):
            continue
        gains_bias = old.bias is None and new.bias is not None
        if gains_bias or is_rescaled_by(norm, old.weight, new.weight):
            how = f"is replaced by a {type(new).__name__}"
            raise ModelError(_folded(f"{name}, the convolution before an attended norm,", how))


def _on_parameter(conv: nn.Module, name: str, value: nn.Parameter) -> None:
    """Refuse a bias where there was none, and weights times the scale of a norm."""
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
        raise ModelError(_folded(kind, "is given its weights times the scale of a norm"))


def _folded(what: str, how: str) -> str:
    return (
        f"{what} {how}, as by folding a batch norm into it: attention between or behind "
        f"the two would be lost, or see other numbers: {ADVICE}"
    )


register_module_module_registration_hook(_on_registration)
register_module_parameter_registration_hook(_on_parameter)
