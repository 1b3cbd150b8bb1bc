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
    excitation: Excitation, parameters: Parameters, channels: int, numbers: Tensor
) -> RegionLayers | None:
    """Describe the layers of an attention; None if they, or their parameters, are not supported.

    Args:
        excitation: layers and gate.
        parameters: the parameters of the layers.
        channels: number of channels of the feature map.
        numbers: a tensor in the dtype of the statistics, on the map's device.
    """
    if excitation.known is None or not are_plain(parameters, numbers.dtype, numbers.device):
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
    if not two_layers_fit(parameters, channels):
        return None
    return RegionLayers("two", cast(Tensor, parameters[0]).size(0), inner, excitation.known)


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


def are_plain(parameters: Parameters, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether parameters' memory, on a device, holds their values in order, in a dtype."""
    for each in parameters:
        if each is not None and not (
            type(each) in _PLAIN
            and each.dtype is dtype
            and each.device == device
            and each.is_contiguous()
            and not each.is_neg()
        ):
            return False
    return True


def two_layers_fit(parameters: Parameters, channels: int) -> bool:
    """Return whether two layers lead from a number of channels back to it."""
    first, of_first, second, of_second = parameters
    width = cast(Tensor, first).size(0)
    return _fits(first, of_first, channels, width) and _fits(second, of_second, width, channels)


def _fits(weight: Any, bias: Tensor | None, inputs: int, outputs: int) -> bool:
    if weight.size(0) != outputs or weight.numel() != inputs * outputs:
        return False
    return bias is None or bias.numel() == outputs
