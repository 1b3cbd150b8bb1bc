"""The interface of a backend that computes norm, activation and attention in whole stages.

These calls replace the passes of :mod:`.interface` and all arithmetic between them, for batch norms
and attentions of known layers (:mod:`composer_attn.ops.region_sites`). A backend need not have
them. Their results are those of :mod:`composer_attn.ops.activated_functions`.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from composer_attn.ops.activations import Activation
from composer_attn.ops.logits import Parameters
from composer_attn.ops.manual_gradients import Norm


def four(parameters: Parameters) -> Parameters:
    """Return weights and biases of two layers, with None for those that an attention lacks."""
    return (*parameters, *(None,) * (4 - len(parameters)))


class RegionNumbers(NamedTuple):
    """The numbers of a normalized map.

    Attributes:
        work: mean, variance, 1, scale and shift, ``(N, C)`` each; no moments if the norm is fixed.
        statistics: mu and 1 / deviation, ``(C,)`` each, kept for the gradient.
        line: scale and shift, ``(C,)`` each, kept for the gradient.
        sizes: what the backend needs to know of the map.
    """

    work: Tensor
    statistics: Tensor
    line: Tensor
    sizes: Any


class RegionLayers(NamedTuple):
    """The layers of an attention, with its gate.

    Attributes:
        kind: ``"kernel"``, a convolution along the channels; ``"one"`` linear layer, or ``"two"``.
        width: size of the kernel, or number of outputs of the first layer.
        inner: the activation between two layers.
        gate: start and name of the gate.
    """

    kind: str
    width: int
    inner: Activation
    gate: tuple[str, str]


class RegionCalls(Protocol):
    """The calls of a region."""

    def load(self) -> object:
        """Build or import what the functions need; raise an exception if that fails."""
        ...

    def is_available(self) -> bool:
        """Return whether the calls can be used on this machine."""
        ...

    def normalize(
        self, x: Tensor, norm: Norm, weight: Tensor | None, bias: Tensor | None
    ) -> RegionNumbers | None:
        """Compute a batch norm up to scale and shift, and update its running statistics.

        Return None, without any effect, if a tensor has a layout or dtype that is not supported.
        """
        ...

    def attend(
        self,
        x: Tensor,
        numbers: RegionNumbers,
        bias: Tensor | None,
        fixed: bool,
        activation: Activation,
        layers: RegionLayers,
        parameters: Parameters,
    ) -> Tensor:
        """Compute an attention after the activation.

        The parameters of its layers are contiguous, and in the dtype of the statistics. Return its
        means and scales ``(N, C)``, and the first layer's output before the activation.
        """
        ...

    def write(
        self,
        x: Tensor,
        numbers: RegionNumbers,
        attended: Tensor | None,
        shortcut: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        """Write the output of the activation or, given its numbers, of the attention."""
        ...

    def write_sum(
        self, x: Tensor, numbers: RegionNumbers, shortcut: Tensor | None, relu: bool
    ) -> Tensor:
        """Write the output of the norm, after an addition and a ReLU."""
        ...

    def gradient(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        statistics: Tensor,
        line: Tensor,
        attended: Tensor | None,
        weight: Tensor | None,
        fixed: bool,
        activation: Activation,
        layers: RegionLayers | None,
        parameters: Parameters,
        sizes: Any,
        needs_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Parameters]:
        """Differentiate norm, activation and attention.

        Args:
            dy: gradient of the output.
            x: the map that was read, in any layout: hooks on saved tensors may have changed it.
            y: the output if it ends in a ReLU, which masks the gradient.
            statistics: those of the numbers.
            line: that of the numbers.
            attended: result of :meth:`attend`, if there is an attention.
            weight: weight of the norm.
            fixed: whether the norm is independent of the batch.
            activation: the activation.
            layers: the layers of the attention, if there is one.
            parameters: their parameters.
            sizes: those of the numbers.
            needs_dx: whether the gradient of ``x`` is needed.

        Returns:
            The gradient of ``x``, that of the sum before the ReLU, and those of weight, bias and
            the parameters of the layers.
        """
        ...

    def sum_gradient(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        statistics: Tensor,
        weight: Tensor | None,
        fixed: bool,
        sizes: Any,
        needs_dx: bool,
    ) -> tuple[Tensor | None, Tensor, Parameters]:
        """Differentiate a norm with an addition; see :meth:`gradient`."""
        ...
