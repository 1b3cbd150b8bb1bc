"""Efficient Channel Attention (ECA)."""

from math import log2, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from composer_attn.attention.base import ChannelAttention, ChannelOptions
from composer_attn.attention.registry import register_attention
from composer_attn.attention.signatures import signed
from composer_attn.checks import MOST, is_real, whole_number
from composer_attn.errors import ArgumentError
from composer_attn.ops.logits import Neighbours


def eca_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """Compute the ECA paper's adaptive kernel size for a number of channels.

    Equation 12 of `ECA-Net <https://arxiv.org/abs/1910.03151>`_ (Wang et al., 2020), rounded as in
    the authors' code: ``t = int(|(log2(channels) + b) / gamma|)``, or ``t + 1`` if ``t`` is even.

    Args:
        channels: number of channels, at least 1.
        gamma: divisor, any real number except 0.
        b: offset, any real number.

    Raises:
        ArgumentError: an argument is invalid, or together they give an absurdly large kernel.

    Example:
        >>> [eca_kernel_size(channels) for channels in (64, 256, 2048)]
        [3, 5, 7]
    """
    if not is_real(gamma) or gamma == 0:
        raise ArgumentError(f"gamma must be a real number other than 0; got {gamma!r}")
    if not is_real(b):
        raise ArgumentError(f"b must be a real number; got {b!r}")
    weights = abs((log2(whole_number("channels", channels)) + b) / gamma)
    if weights >= MOST:
        raise ArgumentError(
            f"gamma={gamma!r} and b={b!r} make a kernel of {weights:.3g} weights for {channels} "
            f"channels: gamma must be further from 0, or b nearer to it (at most {MOST} weights)"
        )
    t = int(weights)
    return t if t % 2 else t + 1


def resolve_kernel_size(kernel_size: int | None, channels: int, gamma: float, b: float) -> int:
    """Return an explicit odd ``kernel_size``, or the adaptive one if it is ``None``.

    Raises:
        ArgumentError: it is even, below 1 or not a whole number; or gamma or b is invalid.
    """
    adaptive = eca_kernel_size(channels, gamma, b)
    if kernel_size is None:
        return adaptive
    if whole_number("kernel_size", kernel_size, maximum=MOST) % 2 == 0:
        raise ArgumentError(
            f"kernel_size must be odd, or None for the paper's adaptive rule; got {kernel_size!r}"
        )
    return int(kernel_size)


class ChannelConvolution(nn.Module):
    """A convolution along the channels, ``(N, C) -> (N, C)``, zero-padded at both ends.

    Not an ``nn.Conv1d``: methods that change every convolution of a network, such as Composer's
    WeightStandardization, are not meant for those of an attention.
    """

    def __init__(self, kernel_size: int, device=None, dtype=None):
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(1, 1, kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the weights as ``nn.Conv1d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C)`` along the channels."""
        # A new dimension instead of a transpose, so that the kernel's gradient has the kernel's
        # strides: DDP warns otherwise.
        return F.conv1d(x.unsqueeze(1), self.weight, padding=self.kernel_size // 2).squeeze(1)

    def extra_repr(self) -> str:
        """Show the number of weights in ``print(model)``."""
        return f"kernel_size={self.kernel_size}"


class EfficientChannelAttention(ChannelAttention):
    """Efficient Channel Attention: scale channels by a convolution over their averages.

    Equation 9 of `ECA-Net <https://arxiv.org/abs/1910.03151>`_ (Wang et al., 2020):
    ``y = gate(conv1d(mean(x))) x``, with a kernel of ``kernel_size`` weights that slides over
    neighbouring channels, zero-padded at both ends.

    Args:
        channels: number of channels ``C`` of the input.
        kernel_size: odd number of weights; ``None`` computes it by :func:`eca_kernel_size`.
        gamma: divisor of the adaptive rule.
        b: offset of the adaptive rule.
        device: device of the parameters.
        dtype: dtype of the parameters.
        options: ``gate``, ``start`` and ``squeeze``: see :class:`ChannelAttention`.

    Shapes:
        ``(N, C, *spatial) -> (N, C, *spatial)`` with 1, 2 or 3 spatial dimensions.

    Raises:
        ArgumentError: an argument is invalid.

    Example:
        >>> import torch
        >>> attention = EfficientChannelAttention(256)
        >>> attention.kernel_size, attention(torch.randn(2, 256, 7, 7)).shape
        (5, torch.Size([2, 256, 7, 7]))
    """

    sized_by = "kernel_size"

    @signed(ChannelOptions, ChannelAttention)
    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        *,
        gamma: float = 2,
        b: float = 1,
        device=None,
        dtype=None,
        **options: Unpack[ChannelOptions],
    ):
        super().__init__(channels, **options)
        self.kernel_size = resolve_kernel_size(kernel_size, self.channels, gamma, b)
        self.conv = ChannelConvolution(self.kernel_size, device, dtype)

    def logits(self, squeezed: Tensor) -> Tensor:
        """Convolve the squeezed input ``(N, C)`` along the channels."""
        return self.conv(squeezed.to(self.conv.weight.dtype))

    def follow_pruning(self, channels: int) -> bool:
        """Adapt to any number of channels: the kernel slides over as many as there are."""
        self.channels = channels
        return True

    def logits_by_hand(self) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return :class:`~composer_attn.ops.logits.Neighbours` if the layer is unmodified."""
        if type(self).logits is not EfficientChannelAttention.logits:
            return None
        return (Neighbours, (self.conv.weight,)) if type(self.conv) is ChannelConvolution else None


register_attention("eca", EfficientChannelAttention)
