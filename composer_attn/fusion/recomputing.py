"""Convolutions that do not keep the output of a fused region, but compute it again in backward."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composer_attn.fusion.class_checks import can_extend
from composer_attn.fusion.fused_norms import FusedModule
from composer_attn.ops.recompute import recipe_of
from composer_attn.surgery.attend import is_attended, original_class

# Type checkers see a convolution; at run time the original class is one.
_Convolution: Any = nn.Conv2d if TYPE_CHECKING else object

_CONVOLUTIONS = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


class Recomputing(FusedModule, _Convolution):
    """A convolution that saves how to compute its input again, instead of the input.

    Whether it can is decided at each call, by the input.
    """

    def forward(self, input: Any) -> Any:
        """Convolve."""
        return super().forward(input)

    def _conv_forward(self, input: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Let autograd save how to compute the input, if that is the output of a fused region."""
        convolve = super()._conv_forward
        recipe = _recipe(input)
        if recipe is None:
            return convolve(input, weight, bias)
        hooks = torch.autograd.graph.saved_tensors_hooks(_Packing(input, recipe), _unpack)
        with ExitStack() as stack:
            with suppress(RuntimeError):  # where hooks are disabled, the input is kept
                stack.enter_context(hooks)
            return convolve(input, weight, bias)


def can_recompute(module: nn.Module) -> bool:
    """Return whether a module is a convolution of torch's, attended or not."""
    cls = original_class(module) if is_attended(module) else type(module)
    return getattr(cls, "forward", None) in _CONVOLUTIONS and can_extend(module, Recomputing)


def _recipe(x: Any) -> Callable[[], Tensor] | None:
    if type(x) is not Tensor or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return None
    return recipe_of(x)


class _Packing:
    """A pack hook: replaces one tensor by its recipe, and leaves all others as they are."""

    def __init__(self, x: Tensor, recipe: Callable[[], Tensor]):
        self.place = _place(x)
        self.recipe = recipe

    def __call__(self, saved: Tensor) -> Any:
        if _place(saved) == self.place:
            return self.recipe
        # Torch compares versions only of tensors that no hook has seen.
        return saved, saved._version


def _place(x: Tensor) -> tuple:
    return x.data_ptr(), x.dtype, x.shape, x.stride()


def _unpack(packed: Any) -> Tensor:
    if callable(packed):
        return packed()
    saved, version = packed
    if saved._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: {saved.dtype} of shape {list(saved.shape)} is at version "
            f"{saved._version}; expected version {version} instead"
        )
    return saved
