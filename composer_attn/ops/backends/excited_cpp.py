"""Attention of a convolution's output by one call of C++, for evaluation: in place, or beforehand.

Between the passes are layers of a few thousand weights. For a single image, torch takes longer to
call them than to compute them (``python -m benchmarks.inference --variants folded``).
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from composer_attn.ops.backends import cpp_site
from composer_attn.ops.backends.cpp import GATES, threads
from composer_attn.ops.backends.cpp_site import WIDE, LayersStructure, layers_of
from composer_attn.ops.backends.layout import is_last

DTYPES = WIDE
# With fewer values, waking other threads takes longer than both passes.
_ALONE = 1 << 16


def load() -> None:
    """Build what the calls need."""
    cpp_site.functions()
    cpp_site.is_available()  # without the BLAS of torch, of which they make use, they are slower


class PreparedCall:
    """An attention, as addresses: it must not be called when one of the tensors has moved.

    Attributes:
        dtype: dtype of the feature maps.
        channels: number of their channels.
    """

    __slots__ = ("_address", "_layers", "_of_maps", "_of_weights", "channels", "dtype")

    def __init__(self, layers: LayersStructure, dtype: torch.dtype, channels: int):
        self.dtype, self.channels = dtype, channels
        self._layers, self._address = layers, ctypes.addressof(layers)
        found = cpp_site.functions()
        self._of_maps, self._of_weights = found["attend", dtype], found["attended_weights", dtype]

    def attend(self, x: Tensor) -> bool:
        """Replace ``x`` by ``gate(logits(inverse mean(x))) post x + shift``.

        Args:
            x: a feature map ``(N, C, *spatial)``.

        Returns:
            Whether it was done; otherwise it has another dtype, layout or number of channels.
        """
        last = not x.is_contiguous()
        samples, channels, *_ = x.shape
        if x.dtype is not self.dtype or channels != self.channels or (last and not is_last(x)):
            return False
        count = x.numel()
        if count:
            positions = count // (samples * channels)
            of_map = (samples, channels, positions, last, threads(count, _ALONE))
            self._of_maps(x.data_ptr(), self._address, *of_map)
        return True

    def weights(
        self, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Compute the weight and bias that give the attended output of a convolution of size 1.

        Args:
            x: its input, of one image, ``(1, C_in, *spatial)``; all of it is seen.
            weight: its weight ``(C, C_in, 1, ...)``.
            bias: its bias, if it has one.

        Returns:
            The two; None if a tensor has another dtype or layout than is taken here.
        """
        given = (x, weight) if bias is None else (x, weight, bias)
        if not all(_is_plain(each, self.dtype) for each in given):
            return None
        last = not x.is_contiguous()
        if not all(each.is_contiguous() for each in given[1:]) or (last and not is_last(x)):
            return None
        if weight.shape[:2] != (self.channels, x.shape[1]):
            return None
        scaled, offset = torch.empty_like(weight), weight.new_empty(self.channels)
        width, count = x.shape[1], x.numel()
        self._of_weights(
            *(x.data_ptr(), self._address, weight.data_ptr()),
            *(None if bias is None else bias.data_ptr(), scaled.data_ptr(), offset.data_ptr()),
            *(width, self.channels, count // width, last, threads(count, _ALONE)),
        )
        return scaled, offset


def prepare(
    dtype: torch.dtype,
    parameters: Sequence[Tensor | None],
    gate: str,
    identity: bool,
    inverse: Tensor | None,
    post: Tensor | None,
    shift: Tensor,
) -> PreparedCall | None:
    """Prepare an attention ``gate(logits(inverse mean(x))) post x + shift``.

    Args:
        dtype: dtype of the feature maps, float32 or float64.
        parameters: weight and bias of two linear layers with a ReLU between them; or the weight
            ``(1, 1, k)`` of a convolution along the channels.
        gate: name of the gate.
        identity: whether the gate is that of ``start="identity"``.
        inverse: factor of the means, ``(C,)``; None if it is 1.
        post: factor of the scales, ``(C,)``; None if it is 1.
        shift: ``(C,)``.

    Returns:
        None if a tensor has another dtype, layout or shape than is taken here.
    """
    channels = shift.numel()
    if not _fit(dtype, channels, parameters, (inverse, post, shift)):
        return None
    kind = GATES["identity" if identity else "paper", gate]
    folded = (inverse, post, shift)
    layers = layers_of(len(parameters) == 1, kind, tuple(parameters), folded)
    return PreparedCall(layers, dtype, channels)


def _fit(
    dtype: torch.dtype,
    channels: int,
    parameters: Sequence[Tensor | None],
    of_channels: Sequence[Tensor | None],
) -> bool:
    """Return whether the memory of all tensors is as the function takes it."""
    shapes: list[tuple[int, ...]] = [(channels,)] * len(of_channels)
    first = parameters[0]
    if len(parameters) == 4 and first is not None:
        hidden = len(first)
        shapes += [(hidden, channels), (hidden,), (channels, hidden), (channels,)]
    elif first is not None:
        shapes += [(1, 1, first.numel())]
    given = (*of_channels, *parameters)
    return len(given) == len(shapes) and all(
        each is None or (each.shape == shape and _is_plain(each, dtype) and each.is_contiguous())
        for each, shape in zip(given, shapes, strict=True)
    )


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor's memory holds its values, in a dtype."""
    return x.dtype is dtype and x.is_cpu and x.layout is torch.strided and not x.is_neg()
