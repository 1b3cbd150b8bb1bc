"""Attentions described by data: the computation from squeeze to scale, with its gradient.

``s = gate(logits(m))``, where ``m (N, C)`` are averages over space. The modules of this package
describe themselves. Modules of other packages have the same layers under other names, and are
described by two linear layers or 1x1 convolutions (:func:`two_layers`), a single one
(:func:`one_layer`), or a convolution along the channels (:func:`neighbours`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer_attn.errors import ArgumentError
from composer_attn.ops.activations import Activation, find_activation, phi, slope
from composer_attn.ops.backends import reference as plain
from composer_attn.ops.backends.interface import Passes
from composer_attn.ops.logits import Neighbours, Parameters, cast_parameters
from composer_attn.ops.manual_gradients import Excitation

# A tuple, not a union, for torch.compile.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Layers(Protocol):
    """The arithmetic of an attention's layers, as in :mod:`composer_attn.ops.logits`."""

    def forward(
        self, passes: Passes, means: Tensor, parameters: Parameters
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits ``(N, C)``, and what the gradient needs besides the means."""
        ...

    def backward(
        self,
        passes: Passes,
        d_logits: Tensor,
        means: Tensor,
        hidden: Tensor | None,
        parameters: Parameters,
    ) -> tuple[Tensor, Parameters]:
        """Return the gradients of the means and of the parameters."""
        ...


class TwoLayers(NamedTuple):
    """``W2 phi(W1 m + b1) + b2``. Weights may have additional dimensions of size 1."""

    activation: Activation

    def forward(self, passes, means, parameters):
        """Return the logits, and the first layer's output."""
        w1, b1, w2, b2 = parameters
        hidden = F.linear(means, w1.flatten(1), b1)
        return F.linear(phi(hidden, self.activation), w2.flatten(1), b2), hidden

    def backward(self, passes, d_logits, means, hidden, parameters):
        """Return the gradients of the means and of the parameters."""
        w1, b1, w2, b2 = parameters
        d_hidden = torch.mm(d_logits, w2.flatten(1)).mul_(slope(hidden, self.activation))
        d_w2 = torch.mm(d_logits.t(), phi(hidden, self.activation)).view_as(w2)
        d_w1 = torch.mm(d_hidden.t(), means).view_as(w1)
        d_b1, d_b2 = (None if b is None else d.sum(0) for b, d in ((b1, d_hidden), (b2, d_logits)))
        return torch.mm(d_hidden, w1.flatten(1)), (d_w1, d_b1, d_w2, d_b2)


class OneLayer:
    """``W m + b``. The weight may have additional dimensions of size 1."""

    @staticmethod
    def forward(passes, means, parameters):
        """Return the logits."""
        weight, bias = parameters
        return F.linear(means, weight.flatten(1), bias), None

    @staticmethod
    def backward(passes, d_logits, means, hidden, parameters):
        """Return the gradients of the means and of the parameters."""
        weight, bias = parameters
        d_weight = torch.mm(d_logits.t(), means).view_as(weight)
        d_bias = None if bias is None else d_logits.sum(0)
        return torch.mm(d_logits, weight.flatten(1)), (d_weight, d_bias)


class Gate(NamedTuple):
    """A gate, from logits to scales.

    Attributes:
        value: the function that computes the scales ``s``.
        slope: its derivative, as a function of the scales.
        clips: whether the derivative is 0 on some interval.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    clips: bool


GATES = {
    "sigmoid": Gate(torch.sigmoid, lambda s: torch.addcmul(s, s, s, value=-1), False),
    "hard_sigmoid": Gate(F.hardsigmoid, lambda s: ((s > 0) & (s < 1)) * (1 / 6), True),
    "tanh": Gate(torch.tanh, lambda s: 1 - s * s, False),
    "relu": Gate(torch.relu, lambda s: ~(s <= 0), True),
}


@dataclass(frozen=True)
class Described:
    """An attention over averages, described by data instead of by a module.

    Attributes:
        channels: number of channels ``C``.
        layers: the arithmetic of the layers.
        parameters: the parameters, in the order of the layers; they receive gradients.
        excitation: layers and gate, for the fused functions.
    """

    channels: int
    layers: Layers
    parameters: Parameters
    excitation: Excitation

    def scales(self, means: Tensor) -> Tensor:
        """Compute the scales ``(N, C)`` from averages by plain operations under autograd."""
        parameters = cast_parameters(self.parameters, means.dtype)
        # The reference backend, since tracing needs plain operations.
        logits, _ = self.layers.forward(plain, means, parameters)
        return self.excitation.gate(logits)


def describe(channels: int, layers: Layers, parameters: Parameters, gate: str) -> Described:
    """Describe an attention by its layers, their parameters and the name of its gate.

    Raises:
        ArgumentError: the gate is not sigmoid, hard_sigmoid, tanh or relu.
    """
    if not isinstance(gate, str) or gate not in GATES:
        raise ArgumentError(f"gate must be one of {', '.join(GATES)}; got {gate!r}")
    excitation = Excitation(layers, *GATES[gate], ("paper", gate))
    return Described(channels, layers, parameters, excitation)


def two_layers(
    first: Layer,
    second: Layer,
    activation: Activation | str | nn.Module = "relu",
    gate: str = "sigmoid",
) -> Described:
    """Describe ``gate(second(activation(first(m))))`` with linear layers or 1x1 convolutions.

    Args:
        first: layer from ``C`` to any number of channels.
        second: layer from these back to ``C`` channels.
        activation: the activation between them.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.

    Raises:
        ArgumentError: a layer is neither linear nor a 1x1 convolution with one group; their sizes
            do not match; activation or gate is unknown.

    Example:
        >>> two_layers(nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1), "silu").channels
        32
    """
    inputs, hidden = _sizes("first", first)
    if _sizes("second", second) != (hidden, inputs):
        raise ArgumentError(
            f"second must go from {hidden} channels back to {inputs}, as first goes from {inputs} "
            f"to {hidden}; got {second}"
        )
    parameters = (first.weight, first.bias, second.weight, second.bias)
    return describe(inputs, TwoLayers(find_activation(activation)), parameters, gate)


def one_layer(layer: Layer, gate: str = "sigmoid") -> Described:
    """Describe ``gate(layer(m))`` with one linear layer or 1x1 convolution.

    Arguments and errors are those of :func:`two_layers`.

    Example:
        >>> one_layer(nn.Conv2d(32, 32, 1), "hard_sigmoid").channels
        32
    """
    inputs, outputs = _sizes("layer", layer)
    if inputs != outputs:
        raise ArgumentError(f"layer must have as many outputs as inputs; got {layer}")
    return describe(inputs, OneLayer(), (layer.weight, layer.bias), gate)


def neighbours(channels: int, convolution: nn.Conv1d, gate: str = "sigmoid") -> Described:
    """Describe ``gate(convolution(m))``, a convolution along the channels, zero-padded.

    Args:
        channels: number of channels.
        convolution: convolution from one channel to one, with an odd kernel size and without bias.
        gate: as in :func:`two_layers`.

    Raises:
        ArgumentError: the convolution does not fit this description.

    Example:
        >>> neighbours(32, nn.Conv1d(1, 1, 3, padding=1, bias=False)).channels
        32
    """
    weight = convolution.weight
    size = weight.shape[-1]
    fits = (
        isinstance(convolution, nn.Conv1d)
        and weight.shape == (1, 1, size)
        and size % 2 == 1
        and convolution.bias is None
        and convolution.stride == convolution.dilation == (1,)
        and convolution.padding in ((size // 2,), "same")
        and convolution.padding_mode == "zeros"
    )
    if not fits:
        raise ArgumentError(
            "convolution must be an nn.Conv1d from one channel to one, of odd size, zero-padded to "
            f"keep the length, without stride and bias; got {convolution}"
        )
    return describe(channels, Neighbours, (weight,), gate)


def _sizes(name: str, layer: Layer) -> tuple[int, int]:
    """Return the numbers of input and output channels of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    plain_convolution = isinstance(layer, _CONVOLUTIONS) and (
        {*layer.kernel_size, *layer.stride} == {1}
        and layer.groups == 1
        and (layer.padding == "same" or not any(layer.padding))
    )
    if not plain_convolution:
        raise ArgumentError(f"{name} must be a linear layer or a 1x1 convolution; got {layer}")
    return layer.in_channels, layer.out_channels
