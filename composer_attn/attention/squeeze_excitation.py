"""Squeeze-and-Excitation."""

from numbers import Integral

from torch import Tensor, nn
from typing_extensions import Unpack

from composer_attn.attention.base import ChannelAttention, ChannelOptions, as_taken_by
from composer_attn.attention.registry import register_attention
from composer_attn.attention.signatures import signed
from composer_attn.checks import MOST, is_real, whole_number
from composer_attn.errors import ArgumentError
from composer_attn.ops.logits import Bottleneck


def resolve_latent_channels(latent_channels: int | float, channels: int) -> int:
    """Convert ``latent_channels``, a count or a fraction of ``channels``, to a count.

    Raises:
        ArgumentError: it is neither a whole number >= 1 nor a fraction strictly between 0 and 1.

    Example:
        >>> resolve_latent_channels(64, 256), resolve_latent_channels(1 / 16, 256)
        (64, 16)
    """
    if isinstance(latent_channels, Integral) and not isinstance(latent_channels, bool):
        if latent_channels >= 1:
            return whole_number("latent_channels", latent_channels, maximum=MOST)
    elif is_real(latent_channels) and 0 < latent_channels < 1:
        return max(1, round(latent_channels * channels))
    raise ArgumentError(
        "latent_channels must be a whole number >= 1, or a fraction of the channels strictly "
        f"between 0 and 1; got {latent_channels!r}"
    )


class SqueezeExcitation(ChannelAttention):
    """Squeeze-and-Excitation: scale channels by a small network applied to their averages.

    Equations 2 to 4 of `Squeeze-and-Excitation Networks <https://arxiv.org/abs/1709.01507>`_ (Hu et
    al., 2018): ``s = gate(W2 relu(W1 mean(x)))``, ``y = s x``. The paper's reduction ratio ``r`` is
    ``latent_channels=1/r``.

    Args:
        channels: number of channels ``C`` of the input.
        latent_channels: width of the hidden layer: a count >= 1, or a fraction of ``channels`` in
            (0, 1), rounded to the nearest count, at least 1.
        bias: whether both linear layers have a bias.
        device: device of the parameters.
        dtype: dtype of the parameters.
        options: ``gate``, ``start`` and ``squeeze``: see :class:`ChannelAttention`.

    Shapes:
        ``(N, C, *spatial) -> (N, C, *spatial)`` with 1, 2 or 3 spatial dimensions.

    Raises:
        ArgumentError: an argument is invalid.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 128, 7, 7)
        >>> attention = SqueezeExcitation(128, latent_channels=1 / 16)
        >>> attention(x).shape, attention.excitation(x).shape
        (torch.Size([2, 128, 7, 7]), torch.Size([2, 128]))
    """

    sized_by = "latent_channels"

    @signed(ChannelOptions, ChannelAttention)
    def __init__(
        self,
        channels: int,
        latent_channels: int | float = 64,
        *,
        bias: bool = False,
        device=None,
        dtype=None,
        **options: Unpack[ChannelOptions],
    ):
        super().__init__(channels, **options)
        if not isinstance(bias, bool):
            raise ArgumentError(f"bias must be True or False; got {bias!r}")
        self.latent_channels = resolve_latent_channels(latent_channels, self.channels)
        self.fc1 = nn.Linear(self.channels, self.latent_channels, bias, device, dtype)
        self.fc2 = nn.Linear(self.latent_channels, self.channels, bias, device, dtype)

    def logits(self, squeezed: Tensor) -> Tensor:
        """Apply the bottleneck of two linear layers to the squeezed input ``(N, C)``."""
        return self.fc2(self.fc1(as_taken_by(self.fc1, squeezed)).relu())

    def follow_pruning(self, channels: int) -> bool:
        """Adapt if both layers were pruned along with the module."""
        first, second = (getattr(layer, "weight", None) for layer in (self.fc1, self.fc2))
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return False
        if first.shape[1] != channels or second.shape[0] != channels:
            return False
        self.channels, self.latent_channels = channels, first.shape[0]
        return True

    def logits_by_hand(self) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return :class:`~composer_attn.ops.logits.Bottleneck` if the layers are unmodified."""
        fc1, fc2 = self.fc1, self.fc2
        if type(self).logits is not SqueezeExcitation.logits:
            return None
        if not type(fc1) is type(fc2) is nn.Linear:
            return None
        return Bottleneck, (*_parameters_of(fc1), *_parameters_of(fc2))


def _parameters_of(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    own = layer._parameters
    weight = own.get("weight")
    if weight is not None and "bias" in own:  # without nn.Module's slower lookup
        return weight, own["bias"]
    return layer.weight, layer.bias


register_attention("squeeze_excite", SqueezeExcitation)
