"""Base class of channel attentions: squeeze, compute logits, gate, scale."""

from collections.abc import Callable
from functools import reduce, wraps
from operator import add
from typing import Any, TypedDict, cast

import torch.fx
from torch import Tensor, nn

from composer_attn.attention.gates import CLIPPED, GATES, RANGES, SLOPES, find_gate, find_range
from composer_attn.attention.own_method import OwnMethod
from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.ops import (
    channel_deviations,
    channel_maxima,
    channel_means,
    channel_vectors,
    scale_channels,
    scale_vectors,
)

# Averages, maxima and no squeeze as in the SENet ablations (table 11 and section 7.1), the sum of
# averages and maxima as in CBAM, and standard deviations.
_SQUEEZES: dict[str, tuple[Callable[[Tensor, int], Tensor], ...]] = {
    "avg": (channel_means,),
    "max": (channel_maxima,),
    "avg+max": (channel_means, channel_maxima),
    "std": (channel_deviations,),
    "none": (channel_vectors,),
}
SQUEEZES = tuple(_SQUEEZES)


def squeeze_channels(x: Tensor, channels: int, squeeze: str, index: int = 0) -> Tensor:
    """Squeeze a feature map ``(N, C, *spatial)`` to vectors of ``C`` channels."""
    return _SQUEEZES[squeeze][index](x, channels)


def scale(x: Tensor, excitation: Tensor, squeeze: str) -> Tensor:
    """Scale a feature map by an excitation computed with the given squeeze."""
    return (scale_vectors if squeeze == "none" else scale_channels)(x, excitation)


def zero_parameters(layer: nn.Module) -> None:
    """Set every parameter of a layer to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def as_taken_by(layer: nn.Module, means: Tensor) -> Tensor:
    """Convert means to the dtype of a layer's weight, if it has a floating-point weight.

    A quantized layer's ``weight`` is a method, or holds integers; it takes the means unchanged.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point():
        return means.to(weight.dtype)
    return means


def _is_plain(parameter: Tensor, dtype: torch.dtype) -> bool:
    return type(parameter) in (Tensor, nn.Parameter) and parameter.dtype == dtype


# Both depend on the number of dimensions, unknown to a symbolic trace: make them leaf functions.
torch.fx.wrap("squeeze_channels")
torch.fx.wrap("scale")


class ChannelOptions(TypedDict, total=False):
    """The keyword arguments common to all channel attentions."""

    gate: str
    start: str
    squeeze: str


class ChannelAttention(nn.Module):
    """Base class of channel attentions: rescales the channels of ``x`` by ``excitation(x)``.

    ``excitation(x) = gate(logits(squeeze(x)))``. A subclass builds its layers and implements
    :meth:`logits`; it may also override the squeeze (:meth:`apply_squeeze`) and the gate
    (:meth:`apply_gate`). ``start="identity"``, fusion with batch norms, the excitation monitor and
    the costs in a plan then work for it, too.

    Args:
        channels: number of channels ``C`` of the input.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        start: ``paper`` keeps PyTorch's default random initialization. ``identity`` zeroes the last
            layer and centres the gate on 1, so that a new attention multiplies by exactly 1 and
            is trained from there.
        squeeze: ``avg`` pools each channel's average over space, ``max`` its maximum, ``std`` its
            standard deviation; ``avg+max`` adds the logits of both; ``none`` does not pool: each
            position is scaled by an excitation of its own channels.

    Attributes:
        sized_by: name of the argument (and attribute) that sizes the attention, if any. In a
            surgery it may be ``{pattern: value}``, and plans show it.
        observer: called with every computed excitation, detached; ``None`` unless a monitor is
            recording.

    Shapes:
        ``(N, C, *spatial) -> (N, C, *spatial)`` with 1, 2 or 3 spatial dimensions.

    Raises:
        ArgumentError: an argument is not valid.

    Example:
        >>> from composer_attn import ChannelAttention
        >>> class Affine(ChannelAttention):
        ...     def __init__(self, channels, **options):
        ...         super().__init__(channels, **options)
        ...         self.layer = nn.Linear(channels, channels)
        ...     def logits(self, squeezed):
        ...         return self.layer(squeezed)
        >>> x = torch.randn(2, 8, 4, 4)
        >>> torch.equal(Affine(8, start="identity")(x), x)
        True
    """

    sized_by: str = ""
    _pool: str = ""
    observer: Callable[[Tensor], None] | None = None

    def __init__(
        self, channels: int, gate: str = "sigmoid", start: str = "paper", squeeze: str = "avg"
    ):
        super().__init__()
        self.channels = whole_number("channels", channels)
        self.gate = gate
        self.start = start
        self._gate = find_gate(gate, start)
        if not isinstance(squeeze, str) or squeeze not in SQUEEZES:
            raise ArgumentError(f"squeeze must be one of {', '.join(SQUEEZES)}; got {squeeze!r}")
        self.squeeze = self._pool = squeeze
        if self._overrides("apply_squeeze"):
            if squeeze in ("avg+max", "none"):
                raise ArgumentError(
                    f"{type(self).__name__} overrides apply_squeeze, which can only build "
                    f"on avg, max or std; got squeeze={squeeze!r}"
                )
            # So that fusion, for example, does not take this squeeze for one of the standard ones.
            self.squeeze = "own"

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        build = cls.__init__

        @wraps(build)
        def init(self, *args, **kwargs):
            build(self, *args, **kwargs)
            if type(self) is cls:  # the outermost __init__: all layers have been built
                self.zero_last_layer()

        cls.__init__ = init

    @property
    def last_layer(self) -> nn.Module:
        """The layer that outputs the logits; by default the one built last."""
        built = next(reversed(self._modules.values()), self)
        return cast(nn.Module, built)  # the last child is never None

    def logits(self, squeezed: Tensor) -> Tensor:
        """Compute the gate's input ``(N, C)`` from the squeezed input ``(N, C)``."""
        raise NotImplementedError(f"{type(self).__name__} must compute its logits")

    def apply_squeeze(self, x: Tensor) -> Tensor:
        """Squeeze ``x (N, C, *spatial)`` to the input of :meth:`logits`, one row per sample."""
        return squeeze_channels(x, self.channels, self._pool or self.squeeze)

    def apply_gate(self, logits: Tensor) -> Tensor:
        """Compute the scales ``(N, C)`` from the logits ``(N, C)``.

        Under ``start="identity"`` an override is shifted such that logits of 0 give a scale of 1.
        """
        return self._gate(logits)

    def by_hand(self, dtype: torch.dtype) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return :meth:`logits_by_hand` if all steps from squeeze to scale are in ``dtype``.

        ``None`` also if a subclass overrides how the scales are computed.
        """
        if self._overrides("excitation_of", "gated", "gate_slope", "apply_gate"):
            return None
        if self._gate is not GATES[self.start][self.gate]:
            return None
        found = self.logits_by_hand()
        if found is None or not all(p is None or _is_plain(p, dtype) for p in found[1]):
            return None
        return found

    def logits_by_hand(self) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return manual forward and backward functions of :meth:`logits`, and their parameters.

        See :mod:`composer_attn.ops.logits`. ``None`` leaves the gradient to autograd.
        """
        return None

    def follow_pruning(self, channels: int) -> bool:
        """Adapt to a new number of channels if the layers fit it; return whether they do.

        Called when the attended module's number of channels is not that at the surgery.
        """
        return False

    def excitation_of(self, *squeezed: Tensor) -> Tensor:
        """Compute the scales ``(N, C)`` from squeezed inputs ``(N, C)``, whose logits are added."""
        return self.gated(reduce(add, [self.logits(each) for each in squeezed]))

    def gated(self, logits: Tensor) -> Tensor:
        """Compute the scales from the logits, and pass them to the observer, if any."""
        scales = self.apply_gate(logits)
        if self.start == "identity" and self._overrides("apply_gate"):
            scales = 1 + (scales - self.apply_gate(torch.zeros_like(logits)))
        if self.observer is not None:
            self.observer(scales.detach())
        return scales

    @property
    def gate_slope(self) -> Callable[[Tensor], Tensor]:
        """The gate's derivative, as a function of the scales."""
        return SLOPES[self.start][self.gate]

    @property
    def gate_range(self) -> tuple[float, float]:
        """The smallest and largest scale of the gate; infinite where it is unbounded."""
        if not self._overrides("apply_gate"):
            return RANGES[self.start][self.gate]
        low, high = find_range(self.apply_gate, self.channels)
        shift = 0.0
        if self.start == "identity":
            shift = 1 - float(self.apply_gate(torch.zeros(1, self.channels))[0, 0])
        return low + shift, high + shift

    @property
    def gate_clips(self) -> bool:
        """Whether the gate is constant on some interval."""
        return self.gate in CLIPPED

    def excitation(self, x: Tensor) -> Tensor:
        """Compute the scales for an input ``(N, C, *spatial)``.

        Returns:
            ``(N, C)``, or ``(N * positions, C)`` with ``squeeze="none"``.
        """
        if self.squeeze == "avg+max":
            averages, maxima = (squeeze_channels(x, self.channels, "avg+max", i) for i in (0, 1))
            return self.excitation_of(averages, maxima)
        return self.excitation_of(self.apply_squeeze(x))

    def forward(self, x: Tensor, begin: Callable[..., Tensor] | None = None) -> Tensor:
        """Scale ``x`` of shape ``(N, C, *spatial)``, preserving its dtype and memory format.

        (``begin`` is an alternative implementation, passed by a fused module whose attention has
        hooks.)
        """
        # torch.fx turns it into a placeholder when an attention is traced by itself (and torch 2.14
        # cannot name its type if that lists arguments).
        if begin is not None and not isinstance(begin, torch.fx.Proxy):
            return begin(x)
        return scale(x, self.excitation(x), self.squeeze)

    def reset_parameters(self) -> None:
        """Initialize the parameters as in the constructor (useful after ``to_empty``)."""
        layer: Any  # nn.Module's annotations allow a tensor as its method
        for layer in self.children():
            layer.reset_parameters()
        self.zero_last_layer()

    def zero_last_layer(self) -> None:
        """Under ``start='identity'``, make every excitation exactly 1, also after a reset.

        Called after construction. A loop that resets all modules of a network resets the last layer
        after this attention, so the layer's own ``reset_parameters`` zeroes it, too.
        """
        if self.start != "identity":
            return
        if not list(self.last_layer.parameters()):
            raise ArgumentError(
                f"{type(self).__name__} has no layer to zero for start='identity': let last_layer "
                "return the one that outputs the logits, or use start='paper'"
            )
        zero_parameters(self.last_layer)
        vars(self.last_layer)["reset_parameters"] = OwnMethod(self.last_layer, zero_parameters)

    @classmethod
    def _overrides(cls, *names: str) -> bool:
        """Return whether a subclass overrides any of these methods or properties."""
        return any(getattr(cls, name) is not getattr(ChannelAttention, name) for name in names)

    def __getstate__(self) -> dict:
        # An observer of this module does not observe its copies.
        return {name: value for name, value in vars(self).items() if name != "observer"}

    def extra_repr(self) -> str:
        """Summarize the shared arguments for ``print(model)``."""
        return f"{self.channels}, gate={self.gate}, start={self.start}, squeeze={self.squeeze}"
