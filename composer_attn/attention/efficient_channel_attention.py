"""Efficient Channel Attention."""

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
    """Compute the kernel size that the ECA paper adapts to a number of channels.

    Equation 12 of `ECA-Net <https://arxiv.org/abs/1910.03151>`_ (Wang et al., 2020), as its
    authors' code rounds it: ``t = int(|(log2(channels) + b) / gamma|)``, or ``t + 1`` where ``t``
    is even.

    Args:
        channels: number of channels, at least 1.
        gamma: divisor, any real number but 0.
        b: summand, any real number.

    Raises:
        ArgumentError: an argument is not valid, or together they make a kernel beyond any use.

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
    """Return an explicit odd ``kernel_size`` as it is, or compute it where it is ``None``.

    Raises:
        ArgumentError: it is even, below 1 or no whole number; or gamma or b is not valid.
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
    """A convolution along channels, ``(N, C) -> (N, C)``, with zeros beyond both ends.

    Not an ``nn.Conv1d``: what changes every convolution of a network, like Composer's
    WeightStandardization, is not meant for an attention's own.
    """

    def __init__(self, kernel_size: int, device=None, dtype=None):
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(1, 1, kernel_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Conv1d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C)`` along the channels."""
        # A new dimension, not a transpose: the kernel's gradient keeps the kernel's strides, which
        # DDP otherwise warns about.
        return F.conv1d(x.unsqueeze(1), self.weight, padding=self.kernel_size // 2).squeeze(1)

    def extra_repr(self) -> str:
        """Show the number of weights in ``print(model)``."""
        return f"kernel_size={self.kernel_size}"


class EfficientChannelAttention(ChannelAttention):
    """Efficient Channel Attention: scale channels by a convolution across their averages.

    Equation 9 of `ECA-Net <https://arxiv.org/abs/1910.03151>`_ (Wang et al., 2020):
    ``y = gate(conv1d(mean(x))) x``, a kernel of ``kernel_size`` weights that slides over
    neighbouring channels, with zeros beyond the first and the last.

    Args:
        channels: number of channels ``C`` of the input.
        kernel_size: odd number of weights; ``None`` computes it by :func:`eca_kernel_size`.
        gamma: divisor of the adaptive rule.
        b: summand of the adaptive rule.
        device: where the parameters live.
        dtype: the parameters' dtype.
        options: ``gate``, ``start`` and ``squeeze``: see :class:`ChannelAttention`.

    Shapes:
        ``(N, C, *spatial) -> (N, C, *spatial)`` with 1, 2 or 3 spatial dimensions.

    Raises:
        ArgumentError: an argument is not valid.

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
        """Convolve what was squeezed, ``(N, C)``, along the channels."""
        return self.conv(squeezed.to(self.conv.weight.dtype))

    def follow_pruning(self, channels: int) -> bool:
        """Follow always: the kernel slides over any number of channels."""
        self.channels = channels
        return True

    def logits_by_hand(self) -> tuple[type, tuple[Tensor | None, ...]] | None:
        """Return :class:`~composer_attn.ops.logits.Neighbours` where the layer is as built."""
        if type(self).logits is not EfficientChannelAttention.logits:
            return None
        return (Neighbours, (self.conv.weight,)) if type(self.conv) is ChannelConvolution else None


register_attention("eca", EfficientChannelAttention)
