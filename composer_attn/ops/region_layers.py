"""Attentions whose layers and gate a backend's calls for whole stages take, and their numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.ops.activations import IDENTITY, RELU, Activation
from composer_attn.ops.backends.region_interface import Parameters, RegionLayers
from composer_attn.ops.excitations import OneLayer, TwoLayers
from composer_attn.ops.logits import Bottleneck, Neighbours
from composer_attn.ops.manual_gradients import Excitation

_PLAIN = (Tensor, nn.Parameter)


def layers_of(
    excitation: Excitation, parameters: Parameters, channels: int, dtype: torch.dtype
) -> RegionLayers | None:
    """Describe the layers of an attention; None if they, or their parameters, are not supported.

    Args:
        excitation: layers and gate.
        parameters: the parameters of the layers.
        channels: number of channels of the feature map.
        dtype: dtype of the statistics.
    """
    if excitation.known is None or not all(_is_plain(each, dtype) for each in parameters):
        return None
    found = _kind_of(excitation.layers)
    if found is None:
        return None
    kind, inner = found
    first: Any = parameters[0]
    width = first.numel() if kind == "kernel" else first.size(0)
    rows = {"kernel": (), "one": (channels,), "two": (width, channels)}[kind]
    columns = {"kernel": (), "one": (channels,), "two": (channels, width)}[kind]
    sizes = [
        size for row, column in zip(rows, columns, strict=True) for size in (row * column, row)
    ]
    for each, size in zip(parameters, sizes, strict=False):
        if each is not None and each.numel() != size:
            return None
    return RegionLayers(kind, width, inner, excitation.known)


def general_numbers(
    numbers: Tensor, excitation: Excitation, x: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return scales, means, and what the layers themselves keep, given an attention's numbers."""
    samples, channels, *_ = x.shape
    whole = samples * channels
    m, s = numbers[: 2 * whole].view(2, samples, channels)
    if numbers.numel() == 2 * whole:
        return s, m, None
    hidden = numbers[2 * whole :].view(samples, -1)
    return s, m, hidden.relu() if excitation.layers is Bottleneck else hidden


def _kind_of(layers: Any) -> tuple[str, Activation] | None:
    if type(layers) is TwoLayers:
        return "two", layers.activation
    if layers is Bottleneck:
        return "two", RELU
    if layers is Neighbours:
        return "kernel", IDENTITY
    return ("one", IDENTITY) if type(layers) is OneLayer else None


def _is_plain(parameter: Tensor | None, dtype: torch.dtype) -> bool:
    """Return whether a parameter's memory holds its values in order, in a dtype."""
    return parameter is None or (
        type(parameter) in _PLAIN
        and parameter.dtype is dtype
        and parameter.is_contiguous()
        and not parameter.is_neg()
    )
