"""Classes of norms, and of a network's own attentions, that are fused across several calls.

A norm returns its output as a deferred tensor (:mod:`composer_attn.fusion.deferred_tensor`). Which
activation follows, and in which form, is known only when it is called; the attention after that
takes the deferred tensor over.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.fused_norms import FusedModule, FusedNorm
from composer_attn.fusion.handoff import (
    ExpectedEpilogue,
    attended,
    keeps_versions,
    needs_plain_operations,
)
from composer_attn.fusion.own_attention import described_for, known_class
from composer_attn.ops.backends.layout import is_dense_map
from composer_attn.ops.beforehand import is_small
from composer_attn.ops.fused import fits_norm
from composer_attn.ops.region_sites import begin


@dataclass(frozen=True)
class ExpectedOperations:
    """What is expected to follow a norm; any other use gives the same values, more slowly.

    Attributes:
        backend: name of the backend that computes it.
        until_attention: whether an attention is expected after an activation.
    """

    backend: str
    until_attention: bool


class DeferringNorm(FusedNorm):
    """A norm fused with the activation, and possibly the attention, that follows it."""

    _attn_expects: ExpectedOperations  # set when it is fused

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, and return a deferred tensor if the input permits."""
        pending = self._pending(input)
        return super().forward(input) if pending is None else pending

    def _pending(self, x: Any) -> Tensor | None:
        if torch.compiler.is_compiling() or needs_plain_operations():
            return None
        if not is_dense_map(x) or not keeps_versions(x) or is_small(x):
            return None
        if not fits_norm(x, self):
            return None
        expected, ends = self._attn_expects, self._attn_ends
        pending = begin(x, self, expected.backend)
        until_relu = ends is not None and ends.until_relu
        return Deferred.of(pending, until_relu, (x,), expected.until_attention)


class DeferringNormAct(DeferringNorm):
    """One of timm's norms with a built-in activation."""

    drop: Any
    act: Any

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, then apply the activation."""
        pending = self._pending(input)
        return (
            super(DeferringNorm, self).forward(input)
            if pending is None
            else self.act(self.drop(pending))
        )


class OwnAttention(FusedModule):
    """A network's own attention, fused with the norm and activation before it."""

    _attn_own: str  # name of the backend; set when it is fused
    _attn_ends: ExpectedEpilogue | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend the input, which may be a norm's deferred output."""
        if len(args) == 1 and not kwargs and type(args[0]) is Deferred:
            found = self._taken(args[0])
            if found is not None:
                return found
        return super().forward(*args, **kwargs)

    def _taken(self, given: Deferred) -> Tensor | None:
        cls = known_class(self)
        if cls is None or torch.compiler.is_compiling():
            return None
        attention = described_for(self, cls, given.stage.x)
        return None if attention is None else attended(given, attention, self._attn_ends)
