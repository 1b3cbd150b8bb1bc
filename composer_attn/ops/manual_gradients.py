"""Manual gradients of the arithmetic between the passes: attention before or after batch norm.

Under autograd it would be dozens of nodes at each site, on tensors so small that the overhead of a
node exceeds its arithmetic. Notation as in :mod:`composer_attn.ops.fused`: ``m``, ``v`` are the
moments of ``x`` over space, ``s`` is the excitation, ``w = gamma / sqrt(var + eps)``. The given
gradients are ``D = sum(dy (x - m))`` and ``B = sum(dy)``, in which ``m`` is treated as a constant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_attn.ops import averaging
from composer_attn.ops.averaging import Averaging
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.logits import Parameters
from composer_attn.ops.normalization import Running, weighted


class Norm(NamedTuple):
    """The settings of a norm apart from its parameters.

    Attributes:
        eps: the constant added to the variance.
        running: the running statistics to update or to normalize by, if any.
        averaging: what the statistics are averaged over, if not the batch; it updates running
            statistics by itself.
    """

    eps: float
    running: Running | None
    averaging: Averaging | None = None

    @property
    def fixed(self) -> bool:
        """Whether it normalizes by its running statistics."""
        return self.running is not None and self.running.fixed

    @property
    def per_channel(self) -> bool:
        """Whether scale and shift are the same for all samples."""
        return self.averaging is None or self.averaging.per_channel

    def forward(
        self,
        passes: Passes,
        s: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalize ``s x`` (:func:`composer_attn.ops.normalization.normalization`)."""
        given = (s, mean, variance, weight, bias, self.eps)
        if self.averaging is not None:
            return averaging.normalization(self.averaging, *given)
        return passes.normalization(*given, self.running)

    def backward(
        self,
        passes: Passes,
        d_scale: Tensor,
        d_shift: Tensor,
        s: Tensor,
        mean: Tensor,
        variance: Tensor,
        mu: Tensor,
        inverse: Tensor,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Differentiate it (:func:`composer_attn.ops.normalization.normalization_gradient`)."""
        given = (d_scale, d_shift, s, mean, variance, mu, inverse, weight)
        if self.averaging is not None:
            return averaging.normalization_gradient(self.averaging, *given)
        return passes.normalization_gradient(*given, self.fixed)


class Excitation(NamedTuple):
    """The part of an attention between squeeze and scale.

    Attributes:
        layers: the arithmetic of the layers (:mod:`composer_attn.ops.logits`).
        gate: the function from logits to scales ``s``.
        slope: the gate's derivative, as a function of the scales.
        clips: whether the derivative is 0 on an interval, where infinite gradients become 0, too.
        known: start and name of the gate (:mod:`composer_attn.attention.gates`), if it has one.
        observer: called by the gate with every computed ``s``, if any.
    """

    layers: Any  # the class
    gate: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    clips: bool
    known: tuple[str, str] | None = None
    observer: Callable[[Tensor], None] | None = None

    def gradient(self, d_s: Tensor, s: Tensor) -> Tensor:
        """Return the gradient of the logits, given that of the scales, which may be overwritten."""
        slope = self.slope(s)
        return torch.where(slope == 0, 0, d_s * slope) if self.clips else d_s.mul_(slope)


class Order:
    """The order of attention and norm. ``passes`` is the backend."""

    @staticmethod
    def forward(
        passes: Passes,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: Norm,
        excitation: Excitation,
        parameters: Parameters,
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Return scale and shift ``(N, C)`` of the output, and the tensors for the gradient."""
        raise NotImplementedError

    @staticmethod
    def backward(
        passes: Passes,
        d_scale: Tensor,
        d_shift: Tensor,
        mean: Tensor,
        weight: Tensor | None,
        norm: Norm,
        excitation: Excitation,
        parameters: Parameters,
        kept: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Parameters]:
        """Return the gradients of mean, variance, weight, bias and the layers' parameters."""
        raise NotImplementedError


class AttentionFirst(Order):
    """``y = s w (x - m) + w (s m - mu) + beta``."""

    @staticmethod
    def excited(
        passes: Passes, mean: Tensor, excitation: Excitation, parameters: Parameters
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scales ``(N, C)``, and the tensors saved by the layers."""
        logits, hidden = excitation.layers.forward(passes, mean, parameters)
        return excitation.gate(logits), hidden

    @staticmethod
    def normalized(passes, mean, variance, s, hidden, weight, bias, norm):
        """Normalize ``s x``, whose channels have means ``s m`` and variances ``s^2 v``."""
        found = norm.forward(passes, s, mean, variance, weight, bias)
        scale, shift, mu, inverse = found
        return scale, shift, (s, variance, mu, inverse, hidden)

    @staticmethod
    def forward(passes, mean, variance, weight, bias, norm, excitation, parameters):
        """Compute the attention, then the norm."""
        s, hidden = AttentionFirst.excited(passes, mean, excitation, parameters)
        arguments = (mean, variance, s, hidden, weight, bias, norm)
        return AttentionFirst.normalized(passes, *arguments)

    @staticmethod
    def backward(passes, d_scale, d_shift, mean, weight, norm, excitation, parameters, kept):
        """Differentiate the norm, then the attention."""
        s, variance, mu, inverse, hidden = kept
        d_s, d_mean, *rest = norm.backward(
            passes, d_scale, d_shift, s, mean, variance, mu, inverse, weight
        )
        d_logits = excitation.gradient(d_s, s)
        d_squeezed, of_layers = excitation.layers.backward(
            passes, d_logits, mean, hidden, parameters
        )
        return d_mean + d_squeezed, *rest, of_layers


class NormFirst(Order):
    """``y = s (w (x - m) + q)``, where ``q = w (m - mu) + beta`` is also the squeezed input."""

    @staticmethod
    def forward(passes, mean, variance, weight, bias, norm, excitation, parameters):
        """Compute the norm as with ``s = 1``, then the attention."""
        one = torch.ones_like(mean)
        _, shift, mu, inverse = norm.forward(passes, one, mean, variance, weight, bias)
        w = weighted(inverse, weight)
        # w m + shift would cancel if the mean is large.
        q = (mean - mu).mul_(w)
        q = q if bias is None else q.add_(bias)
        logits, hidden = excitation.layers.forward(passes, q, parameters)
        s = excitation.gate(logits)
        return s * w, shift.mul_(s), (s, variance, mu, inverse, hidden, q)

    @staticmethod
    def backward(passes, d_scale, d_shift, mean, weight, norm, excitation, parameters, kept):
        """Differentiate the attention, then the norm."""
        s, variance, mu, inverse, hidden, q = kept
        w = weighted(inverse, weight)
        d_s = torch.addcmul(d_scale * w, d_shift, q)
        d_logits = excitation.gradient(d_s, s)
        d_squeezed, of_layers = excitation.layers.backward(passes, d_logits, q, hidden, parameters)
        d_q = torch.addcmul(d_squeezed, d_shift, s)
        given = (d_scale * s, d_q, torch.ones_like(mean), mean, variance, mu, inverse, weight)
        _, d_mean, *rest = norm.backward(passes, *given)
        return torch.addcmul(d_mean, d_squeezed, w), *rest, of_layers
