"""Attentions whose layers and gate a backend's calls for whole stages take, and their numbers."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from composer_attn.ops.activations import IDENTITY, RELU
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
    if excitation.known is None:
        return None
    for each in parameters:
        if each is not None and not _is_plain(each, dtype):
            return None
    layers = excitation.layers
    if layers is Neighbours:
        return RegionLayers(
            "kernel", cast(Tensor, parameters[0]).numel(), IDENTITY, excitation.known
        )
    if type(layers) is OneLayer:
        weight, bias = parameters
        fit = _fits(weight, bias, channels, channels)
        return RegionLayers("one", channels, IDENTITY, excitation.known) if fit else None
    if layers is Bottleneck:
        inner = RELU
    elif type(layers) is TwoLayers:
        inner = layers.activation
    else:
        return None
    first, of_first, second, of_second = parameters
    width = cast(Tensor, first).size(0)
    fit = _fits(first, of_first, channels, width) and _fits(second, of_second, width, channels)
    return RegionLayers("two", width, inner, excitation.known) if fit else None


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


def _fits(weight: Any, bias: Tensor | None, inputs: int, outputs: int) -> bool:
    return weight.numel() == inputs * outputs and (bias is None or bias.numel() == outputs)


def _is_plain(parameter: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a parameter's memory holds its values in order, in a dtype."""
    return (
        type(parameter) in _PLAIN
        and parameter.dtype is dtype
        and parameter.is_contiguous()
        and not parameter.is_neg()
    )
