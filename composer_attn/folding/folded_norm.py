"""What a norm is once it has gone into the convolution before it: nothing, or its activation.

It stays the same object under the same name, with its hooks and children. Its own parameters and
buffers, and its class, are kept by the pair that it is half of.
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
# Matched by qualified names, so that neither package need be installed.
_FROZEN = {
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.FrozenBatchNorm2d",
}
# These compute drop(x) and act(x) after the norm.
_WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
}


class NormBefore(NamedTuple):
    """A norm's own, while it is folded."""

    cls: type[nn.Module]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    eps: float


def refuse_training(module: nn.Module) -> None:
    """Refuse to compute in training mode, where a norm would normalize by the batch."""
    if module.training:
        raise ModelError(
            "this network's norms are folded into its convolutions, for evaluation: call eval() "
            "on it, or composer_attn.unfold_norms(model) to train it"
        )


class FoldedNorm(nn.Module):
    """A norm that has gone into the convolution before it: computes nothing."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, which is normalized already."""
        refuse_training(self)
        return input

    def __getattr__(self, name: str) -> Any:
        held = self.__dict__.get(FOLDED)
        if held is not None and (name in held.norm.parameters or name in held.norm.buffers):
            raise AttributeError(
                f"this norm is folded into the convolution before it and has no {name!r} any "
                "more: call composer_attn.unfold_norms(model) first"
            )
        return super().__getattr__(name)


class FoldedNormAct(FoldedNorm):
    """A norm with an activation of its own, timm's: computes the activation."""

    def forward(self, input: Tensor) -> Tensor:
        """Activate the input, which is normalized already."""
        refuse_training(self)
        held: Any = self  # to nn.Module's annotations, a child may be a tensor
        return held.act(held.drop(input))


def qualified_name(cls: type) -> str:
    """Return a class's name with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"


def class_of_norm(norm: nn.Module) -> type[nn.Module]:
    """Return a norm's class, without its attention."""
    return original_class(norm) if is_attended(norm) else type(norm)


def folded_class_of(norm: nn.Module) -> type[FoldedNorm] | None:
    """Return what a norm becomes; None where it computes something else than a known norm does."""
    cls = class_of_norm(norm)
    if "forward" in vars(norm):
        return None
    if qualified_name(cls) in _WITH_ACTIVATION:
        return FoldedNormAct
    known = cls.forward in _PLAIN or qualified_name(cls) in _FROZEN
    return FoldedNorm if known else None


def uses_batch_statistics(norm: nn.Module) -> bool:
    """Say whether a norm is in training mode, or keeps no statistics to normalize by."""
    if isinstance(norm, _BatchNorm) and norm.training:
        return True
    return norm._buffers.get("running_mean") is None or norm._buffers.get("running_var") is None


def numbers_of(held: NormBefore) -> NormNumbers:
    """Return what a norm computes by."""
    own = {**held.parameters, **held.buffers}
    mean, variance = cast(Tensor, own["running_mean"]), cast(Tensor, own["running_var"])
    return NormNumbers(mean, variance, own.get("weight"), own.get("bias"), held.eps)


def taken_from(norm: nn.Module) -> NormBefore:
    """Return a norm's own, which stays with it."""
    held: Any = norm
    return NormBefore(class_of_norm(norm), norm._parameters, norm._buffers, held.eps)


def empty(norm: nn.Module) -> None:
    """Let a norm compute nothing, or its activation."""
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
    """Say whether a module is a norm that has gone into a convolution."""
    return isinstance(module, FoldedNorm)


for _norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
    refuse_fuse_modules(FoldedNorm, _norm)


def refuse_weights_of_before(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any
) -> None:
    """Refuse, as a hook, a state dict of before folding, before any of it is loaded."""
    for name, norm in module.named_modules(prefix=prefix.removesuffix(".")):
        if is_folded_norm(norm):
            own = vars(norm)[FOLDED].norm
            if any(f"{name}.{each}" in state_dict for each in (*own.parameters, *own.buffers)):
                raise ModelError(
                    f"{name} is folded into the convolution before it, and these weights are of "
                    "before: call unfold_norms first, load them, and fold again"
                )


def watch_loading(model: nn.Module) -> None:
    """Let a folded model refuse weights of before."""
    model.register_load_state_dict_pre_hook(refuse_weights_of_before)


def end_watching(model: nn.Module) -> None:
    """Undo :func:`watch_loading` wherever nothing is folded any more."""
    for module in model.modules():
        if not any(map(is_folded_norm, module.modules())):
            hooks = module._load_state_dict_pre_hooks
            held: Any  # a wrapper of torch's around the hook
            for key, held in list(hooks.items()):
                if held.hook is refuse_weights_of_before:
                    del hooks[key]
