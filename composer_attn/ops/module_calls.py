"""Layers of an attention that are called as modules, because someone looks at them."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.logits import Parameters

if TYPE_CHECKING:  # which imports this package
    from composer_attn.attention.base import ChannelAttention


def keeping() -> AbstractContextManager:
    """Keep what autograd keeps as it is, past a checkpoint, say: a few numbers."""
    return torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept)


class Called:
    """Stands for the arithmetic of some layers, and calls the layers themselves.

    Their hooks run, forward and backward, and may change what passes. Autograd keeps no tensor more
    than it does without: hooks may come and go between the two forwards of a checkpoint.

    Args:
        attention: whose layers.
        layers: their arithmetic (:mod:`composer_attn.ops.logits`).
    """

    def __init__(self, attention: "ChannelAttention", layers: Any):
        self.attention = attention
        self.layers = layers
        # As it is now: what is computed by hand is computed under no_grad.
        self._records = torch.is_grad_enabled()
        self._graph: tuple[Tensor, Tensor] | None = None

    def forward(
        self, passes: Passes, means: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits ``(N, C)`` that the layers give, and what arithmetic would keep."""
        hidden = self.layers.forward(passes, means, parameters)[1]
        with torch.set_grad_enabled(self._records), keeping():
            own = means.detach().requires_grad_(self._records)
            logits = self.attention.logits(own).to(means.dtype)
        self._graph = (own, logits)
        return logits.detach(), hidden

    def backward(
        self,
        passes: Passes,
        d_logits: Tensor,
        means: Tensor,
        hidden: Tensor | None,
        parameters: Parameters,
    ) -> tuple[Tensor, Parameters]:
        """Return the gradients of the means and of the parameters."""
        own, logits = cast(tuple[Tensor, Tensor], self._graph)  # from the forward
        wanted = [own, *(p for p in parameters if p is not None and p.requires_grad)]
        found = torch.autograd.grad(logits, wanted, d_logits, retain_graph=True, allow_unused=True)
        of = dict(zip(map(id, wanted), found, strict=True))
        d_means = torch.zeros_like(means) if found[0] is None else found[0]
        return d_means, tuple(of.get(id(p)) for p in parameters)
