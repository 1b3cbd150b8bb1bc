"""A batch norm's settings for a call, found once instead of at every call of a site."""

from typing import Any

from torch import Tensor, nn

from composer_attn.ops.backends.interface import SiteCalls
from composer_attn.ops.manual_gradients import Norm
from composer_attn.ops.norm_kinds import BATCH_NORMS, BatchKind
from composer_attn.ops.normalization import tensors_of
from composer_attn.ops.recalled import TABLES, Recalled, holds_parameters

# Attributes of a batch norm that determine how it is computed.
_SETTINGS = ("training", "track_running_stats", "eps", "momentum", "num_features")
_PARAMETERS = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var")


class PreparedNorm:
    """A batch norm that can be computed by the passes on feature maps like one that it was given.

    Args:
        x: the map.
        norm: the norm.

    Attributes:
        weight: weight of the norm.
        bias: bias of the norm.
    """

    __slots__ = (
        "_device",
        "_dim",
        "_dtype",
        "_fixed",
        "_kind",
        "_norm",
        "_prepared",
        "_recalled",
        "bias",
        "weight",
    )

    def __init__(self, x: Tensor, norm: nn.Module):
        self._norm: Any = norm
        self._kind = type(norm)
        self._dim, self._dtype, self._device = x.dim(), x.dtype, x.device
        tables = (
            (vars(norm), (*_SETTINGS, *TABLES)),
            (norm._parameters, _PARAMETERS),
            (norm._buffers, _STATISTICS),
        )
        self._recalled = Recalled((table, name) for table, names in tables for name in names)
        self.weight, self.bias, mean, _ = tensors_of(norm)
        fixed = not norm.training and mean is not None
        self._prepared: tuple[SiteCalls, Any] | None = None
        # Without running statistics, a call has no effects either.
        self._fixed = BatchKind.settings(norm, x.shape) if fixed else None

    def fits(self, x: Tensor, norm: nn.Module) -> bool:
        """Return whether it can be used for another map ``(N, C, *spatial)``, and a norm."""
        return (
            norm is self._norm
            and type(norm) is self._kind
            and x.dim() == self._dim
            and x.dtype is self._dtype
            and x.device == self._device
            and x.size(1) == self._norm.num_features
            and x.numel() > x.size(1)
            and self._recalled.holds()
        )

    def settings(self, x: Tensor) -> Norm:
        """Return the settings for a call on ``x``, and count the call."""
        return self._fixed or BatchKind.settings(self._norm, x.shape)

    def call(self, of_norm: Norm, calls: SiteCalls, work: Tensor) -> Any:
        """Return the norm as the calls for whole sites take it; ``None`` if they do not."""
        prepared = self._prepared
        if prepared is None or prepared[0] is not calls:
            found = calls.prepare_norm(work, self.weight, self.bias, of_norm.eps, of_norm.running)
            if found is None:
                return None
            prepared = self._prepared = (calls, found)
        return prepared[1]


def prepare_norm(x: Tensor, norm: nn.Module) -> PreparedNorm | None:
    """Prepare a norm for feature maps like ``x``; ``None`` if only the general stages take it."""
    if not isinstance(norm, BATCH_NORMS) or not BatchKind.fits(x, norm):
        return None
    if not holds_parameters(norm, *_PARAMETERS) or not norm._buffers.keys() >= set(_STATISTICS):
        return None
    return PreparedNorm(x, norm)
