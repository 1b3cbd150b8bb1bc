"""A folded norm: the identity, or the norm's built-in activation.

It remains the same object under the same name, with its hooks and children. Its original class,
parameters and buffers are stored in the pair that it belongs to.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.errors import ModelError
from composer_attn.folding.arithmetic import NormNumbers
from composer_attn.surgery.attend import (
    attended_class,
    attended_side,
    is_attended,
    original_class,
    set_class,
)
from composer_attn.surgery.folding import refuse_fuse_modules
from composer_attn.surgery.validation import FOLDED

_PLAIN = {
    nn.BatchNorm1d.forward,
    nn.BatchNorm2d.forward,
    nn.BatchNorm3d.forward,
    nn.SyncBatchNorm.forward,
}
# Matched by qualified name, so that neither package need be installed.
_FROZEN = {
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.FrozenBatchNorm2d",
}
# Norms that compute act(drop(norm(x))).
_WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
}


class NormBefore(NamedTuple):
    """The original state of a norm while it is folded."""

    cls: type[nn.Module]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    eps: float


def refuse_training(module: nn.Module) -> None:
    """Raise in training mode, in which the norm would use batch statistics."""
    if module.training:
        raise ModelError(
            "this network's norms are folded into its convolutions, for evaluation only: call "
            "eval() on it, or composer_attn.unfold_norms(model) to train it"
        )


class FoldedNorm(nn.Module):
    """A norm that is folded into the convolution before it: the identity."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, which is already normalized."""
        refuse_training(self)
        return input

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get(FOLDED)
        if held is not None and (name in held.norm.parameters or name in held.norm.buffers):
            raise AttributeError(
                f"this norm is folded into the convolution before it and no longer has "
                f"{name!r}: call composer_attn.unfold_norms(model) first"
            )
        return super().__getattr__(name)


class FoldedNormAct(FoldedNorm):
    """A folded norm of timm's with a built-in activation: computes only the activation."""

    def forward(self, input: Tensor) -> Tensor:
        """Activate the input, which is already normalized."""
        refuse_training(self)
        held: Any = self  # in nn.Module's annotations a child may be a tensor
        return held.act(held.drop(input))


def qualified_name(cls: type) -> str:
    """Return the qualified name of a class, including its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_of_norm(norm: nn.Module) -> type[nn.Module]:
    """Return the class of a norm, without added attention."""
    return original_class(norm) if is_attended(norm) else type(norm)


def folded_class_of(norm: nn.Module) -> type[FoldedNorm] | None:
    """Return the class that a norm takes when folded; None if its computation is not known."""
    cls = class_of_norm(norm)
    if "forward" in vars(norm):
        return None
    if qualified_name(cls) in _WITH_ACTIVATION:
        return FoldedNormAct
    known = cls.forward in _PLAIN or qualified_name(cls) in _FROZEN
    return FoldedNorm if known else None


def uses_batch_statistics(norm: nn.Module) -> bool:
    """Return whether a norm uses batch statistics: in training mode or without running ones."""
    if isinstance(norm, _BatchNorm) and norm.training:
        return True
    return norm._buffers.get("running_mean") is None or norm._buffers.get("running_var") is None


def numbers_of(held: NormBefore) -> NormNumbers:
    """Return the numbers of a norm."""
    own = {**held.parameters, **held.buffers}
    mean, variance = cast(Tensor, own["running_mean"]), cast(Tensor, own["running_var"])
    return NormNumbers(mean, variance, own.get("weight"), own.get("bias"), held.eps)


def taken_from(norm: nn.Module) -> NormBefore:
    """Return the original state of a norm, which is left unchanged."""
    held: Any = norm
    return NormBefore(class_of_norm(norm), norm._parameters, norm._buffers, held.eps)


def empty(norm: nn.Module) -> None:
    """Turn a norm into the identity, or into its activation."""
    folded = cast(type[FoldedNorm], folded_class_of(norm))
    vars(norm).update(_parameters={}, _buffers={})
    side = attended_side(norm) if is_attended(norm) else ""
    set_class(norm, attended_class(folded, side) if side else folded)


def refill(norm: nn.Module, held: NormBefore) -> None:
    """Undo :func:`empty`."""
    vars(norm).update(_parameters=held.parameters, _buffers=held.buffers)
    side = attended_side(norm) if is_attended(norm) else ""
    set_class(norm, attended_class(held.cls, side) if side else held.cls)


def is_folded_norm(module: nn.Module) -> TypeGuard[FoldedNorm]:
    """Return whether a module is a norm that is folded into a convolution."""
    return isinstance(module, FoldedNorm)


for _norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    refuse_fuse_modules(FoldedNorm, _norm)


def refuse_weights_of_before(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any
) -> None:
    """Refuse, in a pre-hook, a state dict of the unfolded network before any of it is loaded."""
    for name, norm in module.named_modules(prefix=prefix.removesuffix(".")):
        if is_folded_norm(norm):
            own = vars(norm)[FOLDED].norm
            if any(f"{name}.{each}" in state_dict for each in (*own.parameters, *own.buffers)):
                raise ModelError(
                    f"{name} is folded into the convolution before it, and these weights are "
                    "from before folding: call unfold_norms, load them, and fold again"
                )


def watch_loading(model: nn.Module) -> None:
    """Register a hook that makes a folded model refuse state dicts of the unfolded one."""
    model.register_load_state_dict_pre_hook(refuse_weights_of_before)


def end_watching(model: nn.Module) -> None:
    """Undo :func:`watch_loading` on every module that no longer contains a folded norm."""
    for module in model.modules():
        if not any(map(is_folded_norm, module.modules())):
            hooks = module._load_state_dict_pre_hooks
            held: Any  # torch's wrapper around the hook
            for key, held in list(hooks.items()):
                if held.hook is refuse_weights_of_before:
                    del hooks[key]
