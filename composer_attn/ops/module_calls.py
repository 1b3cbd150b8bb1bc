"""Layers of an attention that are called as modules, because they have hooks."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.logits import Parameters

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention


def keeping() -> AbstractContextManager:
    """Bypass saved-tensor hooks, such as those of checkpointing, for a few small tensors."""
    return torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept)


class Called:
    """Substitute for the arithmetic of some layers that calls the layers themselves.

    Their forward and backward hooks run, and may change values. Autograd saves the same number of
    tensors as without hooks: these may come and go between the two forwards of a checkpoint.

    Args:
        attention: the attention that the layers belong to.
        layers: their arithmetic (:mod:`composer_attn.ops.logits`).
    """

    def __init__(self, attention: "ChannelAttention", layers: Any):
        self.attention = attention
        self.layers = layers
        # The mode at construction: autograd functions with manual gradients run under no_grad.
        self._records = torch.is_grad_enabled()
        self._graph: tuple[Tensor, Tensor] | None = None

    def forward(
        self, passes: Passes, means: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor | None]:
        """Return the layers' logits ``(N, C)``, and the tensors that the arithmetic would save."""
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
