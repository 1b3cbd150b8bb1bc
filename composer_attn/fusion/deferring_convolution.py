"""Convolutions whose activation and attention are fused, without a norm between them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.fused_norms import FusedModule
from composer_attn.fusion.handoff import keeps_versions, needs_plain_operations
from composer_attn.ops.backends.layout import is_dense_map
from composer_attn.ops.beforehand import is_small
from composer_attn.ops.pending_output import PendingOutput

# Type checkers see a convolution; at run time the original class is one.
_Convolution: Any = nn.Conv2d if TYPE_CHECKING else object


def _forwards(cls: Any) -> tuple[Any, Any]:
    """Return the methods that compute a module's output."""
    return cls.forward, getattr(cls, "_conv_forward", None)


_FRESH = {
    _forwards(getattr(nn, f"{kind}{dimensions}d"))
    for kind in ("Conv", "ConvTranspose")
    for dimensions in (1, 2, 3)
}


def is_fresh(cls: type[nn.Module]) -> bool:
    """Return whether the outputs of a class are new tensors, referenced by nothing else.

    So are those of torch's convolutions, and of subclasses that do not compute them otherwise.
    """
    return _forwards(cls) in _FRESH


class DeferringConvolution(FusedModule, _Convolution):
    """A convolution that returns its output as a deferred tensor, for the activation after it.

    So the activation may be a module, a function or a method, in place or not: the tensor that all
    others hold is the deferred one, and stays right for them.
    """

    kernel_size: tuple[int, ...]
    _attn_expects: Any  # ExpectedOperations; set when it is fused

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Convolve."""
        x = super().forward(*args, **kwargs)
        if torch.compiler.is_compiling() or needs_plain_operations() or not self._defers(x):
            return x
        return Deferred.of(PendingOutput(x, self._attn_expects.backend), until_attention=True)

    def _defers(self, x: Tensor) -> bool:
        return (
            is_dense_map(x)
            and x.dim() == len(self.kernel_size) + 2  # not of a single sample
            and x.is_floating_point()
            and x.numel() > 0
            and keeps_versions(x)
            and not is_small(x)
        )
