"""The arithmetic of a norm that goes into the convolution before it, with or without attention.

In evaluation a norm is ``c z + t`` with ``c = gamma / sqrt(var + eps)`` and ``t = beta - mean c``.

Without attention between the two, the convolution's weights become ``c W``, and its bias
``c b + t``. With attention of scales ``s`` between them, ``y = c s(z) z + t``, where the scales are
computed from ``z`` itself. The weights become ``f W``, so that ``z' = f z``, and

    y = (p s(squeeze(z') / f)) z' + t,  c = p f.

``f`` is ``c`` wherever that can be divided by: then ``p`` is 1, and there is no such factor. Where
``c`` is (nearly) 0 the channel is the constant ``t``, but other channels' scales may depend on it:
``f`` is 1 and ``p`` is ``c``. Maxima and deviations do not change their sign with ``z``: for these
``f`` is ``|c|``, and ``p`` the sign.

All is computed in double precision and rounded once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Below this, what is squeezed would be divided by too little for half precision.
_LEAST = 1e-3
# Squeezes that are linear: what changes its sign stays what it was but for the sign.
_LINEAR = ("avg", "none")


class NormNumbers(NamedTuple):
    """What a norm in evaluation computes by; ``weight`` and ``bias`` are None where it has none."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Layout:
    """How a convolution keeps its weights.

    Attributes:
        transposed: whether the output's channels are the second dimension, not the first.
        groups: how many groups of channels there are.
    """

    transposed: bool = False
    groups: int = 1

    def scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        """Scale what each output channel is computed from; in the precision of the factor."""
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
    """What a folded pair computes by.

    Attributes:
        weight: of the convolution.
        bias: likewise; None where it has none.
        shift: what is added after attention; None where there is no attention between the two.
        inverse: what is squeezed is multiplied by it; None where a layer of the attention takes it.
        post: scales are multiplied by it; None where it is 1.
        columns: the weight of the layer that takes the inverse into its columns.
    """

    weight: Tensor
    bias: Tensor | None
    shift: Tensor | None = None
    inverse: Tensor | None = None
    post: Tensor | None = None
    columns: Tensor | None = None


def _exact(tensor: Tensor) -> Tensor:
    # Apple's GPUs have no double precision.
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
    """Fold a norm into a convolution that is attended.

    Args:
        weight: of the convolution.
        bias: likewise.
        layout: likewise.
        norm: the norm after its attention.
        squeeze: of the attention.
        columns: the weight ``(latent, C)`` of a linear layer that takes what is squeezed, and
            nothing else.
    """
    scale, shift = scale_and_shift(norm)
    factor = scale if squeeze in _LINEAR else scale.abs()
    factor = torch.where(factor.abs() < _LEAST, torch.ones_like(factor), factor)
    inverse, post = 1 / factor, scale / factor
    # Of a network in half precision, what is squeezed is float32.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return FoldedNumbers(
        layout.scaled(weight, factor).detach(),
        None if bias is None else (factor * _exact(bias)).to(bias.dtype),
        shift.to(weight.dtype),
        inverse.to(dtype) if columns is None else None,
        None if bool((post == 1).all()) else post.to(dtype),
        None if columns is None else (_exact(columns) * inverse).to(columns.dtype),
    )
