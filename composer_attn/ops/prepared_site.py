"""An attention as the calls for a whole site take it, prepared once for many calls.

Finding out whether and how a backend computes an attention takes longer than computing it on a
small feature map: a fused module keeps what was found, as long as nothing of it changes.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from composer_attn.ops import stages
from composer_attn.ops.backends.interface import SiteCalls
from composer_attn.ops.backends.layout import is_dense_map, is_last
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.table import find_excited, find_passes, find_sites
from composer_attn.ops.logits import Bottleneck, Neighbours, Parameters
from composer_attn.ops.recalled import Recalled, entries_of, holds_weights
from composer_attn.ops.region_layers import are_plain, two_layers_fit
from composer_attn.ops.sites import ExcitedSite
from composer_attn.ops.stages import Excited

if TYPE_CHECKING:  # a circular import at run time
    from composer_attn.attention.base import ChannelAttention

_IS_KERNEL: dict[Any, bool] = {Bottleneck: False, Neighbours: True}


class PreparedSite:
    """What the calls for a site take besides the map: found once, and used while it is the same.

    Attributes:
        backend: name of the backend.
        calls: its calls for whole sites.
        passes: its passes.
        excitation: layers and gate of the attention.
        parameters: those of the layers.
    """

    __slots__ = (
        "_attention", "_device", "_dim", "_dtype", "_for_numbers", "_layers", "_recalled",
        "backend", "calls", "excitation", "parameters", "passes",
    )  # fmt: skip

    def __init__(
        self, x: Tensor, attention: "ChannelAttention", calls: SiteCalls, layers: Any,
        parameters: Parameters, backend: str,
    ):  # fmt: skip
        self._attention = attention
        self._dim, self._device, self._dtype = x.dim(), x.device, x.dtype
        self.calls, self.passes, self.backend = calls, find_passes(backend, x), backend
        self.excitation = stages.excitation_by_hand(attention, layers)
        self.parameters = parameters
        gate = calls.GATES[attention.start, attention.gate]
        self._layers = calls.prepare_layers(_IS_KERNEL[layers], gate, parameters)
        self._for_numbers: Any = None
        self._recalled: Recalled | None = None

    def remember(self, x: Tensor) -> "PreparedSite | None":
        """Remember what it depends on, for other maps; ``None`` if changes could not be seen.

        The attention must have no hooks. ``x`` is the map that it was prepared for.
        """
        attention = self._attention
        if not holds_weights(attention):
            return None
        self._recalled = Recalled(entries_of(attention), attention.modules())
        found = find_excited(self.backend, x)
        if found is not None:
            self._for_numbers = found.PreparedCall(self._layers.structure, x.dtype, x.size(1))
        return self

    def fits(self, x: Any, attention: Any, channels: int | None = None) -> bool:
        """Return whether it can be used for another feature map of the same kind.

        Args:
            x: the map, or the input of the convolution that computes it.
            attention: the attention.
            channels: number of channels of the map if ``x`` is not the map.
        """
        return (
            attention is self._attention
            and is_dense_map(x)
            and x.dim() == self._dim
            and (x.size(1) if channels is None else channels) == attention.channels
            and x.dtype is self._dtype
            and x.device == self._device
            and x.numel() > 0
            and self._recalled is not None
            and self._recalled.holds()
            and not self._recalled.is_watched()
        )

    @property
    def for_numbers(self) -> Any:
        """The :class:`.backends.excited_cpp.PreparedCall` where only numbers are asked for.

        ``None`` if there is none, or the scales are observed.
        """
        return self._for_numbers if self.excitation.observer is None else None

    def excite(self, x: Tensor) -> ExcitedSite:
        """Compute the attention up to its scales."""
        last = not x.is_contiguous()
        site, work = self.calls.excite(x, last, self._layers)
        if self.excitation.observer is not None:
            self.excitation.observer(site.views(work)[2])
        return ExcitedSite(
            *(x, self.calls, self.passes, site, work, self.excitation, self.parameters),
            self.backend,
        )


def prepare(
    x: Tensor, attention: "ChannelAttention", backend: str, called: bool = False
) -> PreparedSite | None:
    """Prepare the calls for a site; ``None`` if only the general stages can compute it."""
    calls = None if called else find_sites(backend, x)
    # Of a map in another layout there would be a copy, which has another history.
    if calls is None or x.is_neg() or not (x.is_contiguous() or is_last(x)):
        return None
    dtype = statistics_dtype(x)
    layers, parameters = attention.by_hand(dtype) or (None, ())
    if layers not in _IS_KERNEL or not are_plain(parameters, dtype, x.device):
        return None
    if not (_IS_KERNEL[layers] or two_layers_fit(parameters, x.size(1))):
        return None
    return PreparedSite(x, attention, calls, layers, parameters, backend)


def excite(
    x: Tensor, attention: "ChannelAttention", backend: str, called: bool = False
) -> ExcitedSite | Excited:
    """Compute an attention up to scaling the map, as :func:`composer_attn.ops.stages.excite`."""
    prepared = prepare(x, attention, backend, called)
    if prepared is None:
        return stages.excite(x, attention, backend, called)
    return prepared.excite(x)
