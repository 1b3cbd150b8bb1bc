"""What every channel attention shares: squeeze, compute logits, gate, scale."""

from collections.abc import Callable

import torch.fx
from torch import Tensor, nn

from composer_attn.attention.gates import CLIPPED, GATES, SLOPES, find_gate
from composer_attn.attention.own_method import OwnMethod
from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.ops import (
    channel_maxima,
    channel_means,
    channel_vectors,
    scale_channels,
    scale_vectors,
)

# The paper's ablation (SENet, table 11 and section 7.1), by name.
SQUEEZES = ("avg", "max", "none")


def squeeze_channels(x: Tensor, channels: int, squeeze: str) -> Tensor:
    """Squeeze a feature map ``(N, C, *spatial)`` to vectors of ``C`` channels each."""
    if squeeze == "none":
        return channel_vectors(x, channels)
    return channel_maxima(x, channels) if squeeze == "max" else channel_means(x, channels)


def scale(x: Tensor, excitation: Tensor, squeeze: str) -> Tensor:
    """Scale a feature map by the excitation that a squeeze of the same name led to."""
    return (scale_vectors if squeeze == "none" else scale_channels)(x, excitation)


def zero_parameters(layer: nn.Module) -> None:
    """Set every parameter of a layer to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def as_taken_by(layer: nn.Module, means: Tensor) -> Tensor:
    """Give means the dtype of a layer's weight, unless what stands there has none of its own.

    A quantized layer's ``weight`` is a method, or holds integers; it takes the means as they are.
    """
    weight = getattr(layer, "weight", None)
    has_dtype = isinstance(weight, Tensor) and weight.is_floating_point()
    return means.to(weight.dtype) if has_dtype else means


def _is_plain(parameter: Tensor, dtype: torch.dtype) -> bool:
    return type(parameter) in (Tensor, nn.Parameter) and parameter.dtype == dtype


# Both look at the number of dimensions, which a symbolic trace does not know: keep them whole.
torch.fx.wrap("squeeze_channels")
torch.fx.wrap("scale")


class ChannelAttention(nn.Module):
    """Base of the attentions: rescales the channels of ``x`` by ``excitation(x)``.

    A subclass builds its layers, then calls :meth:`zero_last_layer`; it names the layer that puts
    out the logits in :attr:`last_layer`, and computes them from pooled averages in :meth:`logits`.

    Args:
        channels: number of channels ``C`` of the input.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        start: ``paper`` leaves the layers at PyTorch's usual random initialization. ``identity``
            zeroes the last layer and centres the gate on 1, so that a new attention multiplies by
            exactly 1, and learns from there.
        squeeze: ``avg`` pools each channel's average over space, ``max`` its maximum; ``none``
            pools nothing: each position is excited by its own channels.

    Attributes:
        observer: called with every excitation that is computed, detached; ``None`` but for the
            moments in which somebody looks.

    Raises:
        ArgumentError: an argument is not valid.
    """

    observer: Callable[[Tensor], None] | None = None

    def __init__(self, channels: int, gate: str, start: str, squeeze: str):
        super().__init__()
        self.channels = whole_number("channels", channels)
        self.gate = gate
        self.start = start
        self.squeeze = squeeze
        self._gate = find_gate(gate, start)
        if not isinstance(squeeze, str) or squeeze not in SQUEEZES:
            raise ArgumentError(f"squeeze must be one of {', '.join(SQUEEZES)}; got {squeeze!r}")

    @property
    def last_layer(self) -> nn.Module:
        """The layer whose output is the logits."""
        raise NotImplementedError

    def logits(self, means: Tensor) -> Tensor:
        """Compute the gate's input ``(N, C)`` from what was squeezed, ``(N, C)``."""
        raise NotImplementedError

    def by_hand(self, dtype: torch.dtype) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return :meth:`logits_by_hand` if all between squeeze and scale is computed in ``dtype``.

        ``None`` also where a subclass computes its scales in another way.
        """
        names = ("excitation_of", "gated", "gate_slope")
        if any(getattr(type(self), name) is not getattr(ChannelAttention, name) for name in names):
            return None
        if self._gate is not GATES[self.start][self.gate]:
            return None
        found = self.logits_by_hand()
        if found is None or any(p is not None and not _is_plain(p, dtype) for p in found[1]):
            return None
        return found

    def logits_by_hand(self) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return the arithmetic of :meth:`logits` with its gradient, and the parameters it takes.

        See :mod:`composer_attn.ops.logits`. ``None`` leaves the gradient to autograd.
        """
        return None

    def follow_pruning(self, channels: int) -> bool:
        """Rescale this many channels from now on, if the layers are such; say whether they are.

        Asked where the module that is attended puts out another number than it did at the surgery.
        """
        return False

    def excitation_of(self, means: Tensor) -> Tensor:
        """Compute the scales ``(N, C)`` from what was squeezed, ``(N, C)``."""
        return self.gated(self.logits(means))

    def gated(self, logits: Tensor) -> Tensor:
        """Compute the scales from the logits, and show them to who looks."""
        scales = self._gate(logits)
        if self.observer is not None:
            self.observer(scales.detach())
        return scales

    @property
    def gate_slope(self) -> Callable[[Tensor], Tensor]:
        """The gate's derivative, as a function of the scales."""
        return SLOPES[self.start][self.gate]

    @property
    def gate_clips(self) -> bool:
        """Whether the gate is constant somewhere."""
        return self.gate in CLIPPED

    def excitation(self, x: Tensor) -> Tensor:
        """Compute the scales for an input ``(N, C, *spatial)``.

        Returns:
            ``(N, C)``, or ``(N * positions, C)`` where nothing is squeezed.
        """
        return self.excitation_of(squeeze_channels(x, self.channels, self.squeeze))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` of shape ``(N, C, *spatial)``, keeping its dtype and memory format."""
        return scale(x, self.excitation(x), self.squeeze)

    def reset_parameters(self) -> None:
        """Draw new initial parameters, as after building (useful after ``to_empty``)."""
        for layer in self.children():
            layer.reset_parameters()
        self.zero_last_layer()

    def zero_last_layer(self) -> None:
        """Under ``start='identity'``, make every excitation exactly 1, and keep it so.

        A loop over all of a network's modules resets the layer after this attention.
        """
        if self.start == "identity":
            zero_parameters(self.last_layer)
            vars(self.last_layer)["reset_parameters"] = OwnMethod(self.last_layer, zero_parameters)

    def __getstate__(self) -> dict:
        # Who looks at this module does not look at its copies.
        return {name: value for name, value in vars(self).items() if name != "observer"}

    def extra_repr(self) -> str:
        """Summarize the shared arguments for ``print(model)``."""
        return f"{self.channels}, gate={self.gate}, start={self.start}, squeeze={self.squeeze}"
