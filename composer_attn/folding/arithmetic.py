"""The arithmetic of folding a norm into the convolution before it, with or without attention.

In evaluation a norm is ``c z + t`` with ``c = gamma / sqrt(var + eps)`` and ``t = beta - mean c``.

Without attention between the two, the convolution's weights become ``c W`` and its bias becomes
``c b + t``. With attention between them, ``y = c s(z) z + t``, where the scales ``s`` are computed
from ``z`` itself. The weights become ``f W``, so that ``z' = f z``, and

    y = (p s(squeeze(z') / f)) z' + t,  c = p f.

``f`` is ``c`` wherever division by it is safe: then ``p`` is 1 and is omitted. Where ``c`` is
(nearly) 0 the channel is the constant ``t``, but the scales of other channels may depend on it:
there ``f`` is 1 and ``p`` is ``c``. Maxima and standard deviations do not change sign with ``z``:
for these ``f`` is ``|c|``, and ``p`` the sign.

All values are computed in double precision and rounded once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Dividing the squeezed values by a smaller factor could overflow in half precision.
_LEAST = 1e-3
# Linear squeezes: if the feature map changes sign, the squeezed values do, too.
_LINEAR = ("avg", "none")


class NormNumbers(NamedTuple):
    """The numbers of a norm in evaluation; ``weight`` and ``bias`` are None if it has none."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Layout:
    """Layout of a convolution's weight.

    Attributes:
        transposed: whether the output channels are the second dimension, as in ConvTranspose.
        groups: number of groups.
    """

    transposed: bool = False
    groups: int = 1

    def scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Scale the weight per output channel, in the precision of ``factor``."""
        exact = weight.to(factor.dtype)
        if not self.transposed:
            scaled = exact * factor.reshape(-1, *[1] * (weight.dim() - 1))
        else:
            grouped = exact.reshape(self.groups, -1, *weight.shape[1:])
            each = factor.reshape(self.groups, 1, -1, *[1] * (weight.dim() - 2))
            scaled = (grouped * each).reshape(weight.shape)
        return scaled.to(weight.dtype)


@dataclass(frozen=True)
class FoldedNumbers:
    """The parameters and buffers of a folded pair.

    Attributes:
        weight: weight of the convolution.
        bias: bias of the convolution; None if it has none.
        shift: added after the attention, ``(C,)``; None without attention between the two.
        inverse: factor of the squeezed values; None if a layer of the attention absorbs it.
        post: factor of the scales; None if it is 1.
        columns: weight of the attention's layer whose columns absorb ``inverse``.
    """

    weight: Tensor
    bias: Tensor | None
    shift: Tensor | None = None
    inverse: Tensor | None = None
    post: Tensor | None = None
    columns: Tensor | None = None


def _exact(tensor: Tensor) -> Tensor:
    # MPS does not support double precision.
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def scale_and_shift(norm: NormNumbers) -> tuple[Tensor, Tensor]:
    """Return ``c`` and ``t`` with ``norm(z) = c z + t``, ``(C,)`` each, in double precision."""
    scale = torch.rsqrt(_exact(norm.variance) + norm.eps)
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -_exact(norm.mean) * scale
    return scale, shift if norm.bias is None else shift + _exact(norm.bias)


def fold_plain(
    weight: Tensor, bias: Tensor | None, layout: Layout, norm: NormNumbers
) -> FoldedNumbers:
    """Fold a norm into the convolution before it."""
    scale, shift = scale_and_shift(norm)
    if bias is not None:
        shift = shift + scale * _exact(bias)
    return FoldedNumbers(layout.scaled(weight, scale).detach(), shift.to(weight.dtype))


def fold_attended(
    weight: Tensor,
    bias: Tensor | None,
    layout: Layout,
    norm: NormNumbers,
    squeeze: str,
    columns: Tensor | None = None,
) -> FoldedNumbers:
    """Fold a norm into an attended convolution.

    Args:
        weight: weight of the convolution.
        bias: bias of the convolution, if any.
        layout: layout of the weight.
        norm: the norm after the attention.
        squeeze: the attention's squeeze.
        columns: weight ``(latent, C)`` of a linear layer that is the only consumer of the squeezed
            values, if there is one.
    """
    scale, shift = scale_and_shift(norm)
    factor = scale if squeeze in _LINEAR else scale.abs()
    factor = torch.where(factor.abs() < _LEAST, torch.ones_like(factor), factor)
    inverse, post = 1 / factor, scale / factor
    # In a half-precision network the squeezed values are float32.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return FoldedNumbers(
        layout.scaled(weight, factor).detach(),
        None if bias is None else (factor * _exact(bias)).to(bias.dtype),
        shift.to(weight.dtype),
        inverse.to(dtype) if columns is None else None,
        None if bool((post == 1).all()) else post.to(dtype),
        None if columns is None else (_exact(columns) * inverse).to(columns.dtype),
    )
