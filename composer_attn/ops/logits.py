"""The layers of an attention, with manual gradients.

Under autograd they would be a dozen nodes at each site, on tensors so small that the overhead of a
node exceeds its arithmetic. ``passes`` is the backend; ``parameters`` are in the order of the
layers, with ``None`` for an absent bias.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from composer_attn.ops.backends.interface import Passes

Parameters = tuple[Tensor | None, ...]
# Of the parameters of two linear layers, only biases can be absent.
_TwoLayers = tuple[Tensor, Tensor | None, Tensor, Tensor | None]
_OneKernel = tuple[Tensor]


def cast_parameters(parameters: Parameters, dtype: torch.dtype) -> Parameters:
    """Cast parameters (of 16 bits, for example) to the dtype of the statistics."""
    return tuple(None if p is None else p.to(dtype) for p in parameters)


class Bottleneck:
    """``W2 relu(W1 m + b1) + b2``: the logits of Squeeze-and-Excitation."""

    @staticmethod
    def forward(passes: Passes, means: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Return the logits ``(N, C)``, and the hidden activations for the gradient."""
        w1, b1, w2, b2 = cast(_TwoLayers, parameters)
        hidden = F.linear(means, w1, b1).relu_()
        return F.linear(hidden, w2, b2), hidden

    @staticmethod
    def backward(
        passes: Passes, d_logits: Tensor, means: Tensor, hidden: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Parameters]:
        """Return the gradients of the means and of the parameters."""
        w1, b1, w2, b2 = cast(_TwoLayers, parameters)
        d_hidden = torch.ops.aten.threshold_backward(torch.mm(d_logits, w2), hidden, 0)
        d_b1, d_b2 = (None if b is None else d.sum(0) for b, d in ((b1, d_hidden), (b2, d_logits)))
        d_w1, d_w2 = torch.mm(d_hidden.t(), means), torch.mm(d_logits.t(), hidden)
        return torch.mm(d_hidden, w1), (d_w1, d_b1, d_w2, d_b2)


class Neighbours:
    """``sum_j w_j m_(c + j)``: the logits of Efficient Channel Attention."""

    @staticmethod
    def forward(passes: Passes, means: Tensor, parameters: Parameters) -> tuple[Tensor, None]:
        """Return the logits ``(N, C)``."""
        (kernel,) = cast(_OneKernel, parameters)
        return passes.convolve(means, kernel), None

    @staticmethod
    def backward(
        passes: Passes,
        d_logits: Tensor,
        means: Tensor,
        hidden: Tensor | None,
        parameters: Parameters,
    ) -> tuple[Tensor, Parameters]:
        """Return the gradients of the means and of the kernel."""
        (kernel,) = cast(_OneKernel, parameters)
        d_means, d_kernel = passes.convolve_gradient(d_logits, means, kernel)
        return d_means, (d_kernel,)


def convolve(means: Tensor, kernel: Tensor) -> Tensor:
    """Convolve ``(N, C)`` along the channels by ``(1, 1, k)``, zero-padded at both ends."""
    return torch.mv(_windows(means, kernel.numel()), kernel.flatten()).view_as(means)


def convolve_gradient(d_logits: Tensor, means: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the means and of the kernel, given that of the logits."""
    size = kernel.numel()
    d_kernel = torch.mv(_windows(means, size).t(), d_logits.reshape(-1))
    return convolve(d_logits, kernel.flip(-1)), d_kernel.view_as(kernel)


def _windows(x: Tensor, size: int) -> Tensor:
    """Return the kernel's window at each sample and channel, ``(N C, size)``."""
    return F.pad(x, (size // 2, size // 2)).unfold(1, size, 1).reshape(-1, size)
