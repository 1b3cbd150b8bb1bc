"""The launches for the layers of an attention and for a norm, on the numbers of a map."""

from typing import cast

import torch
from torch import Tensor

from composer_attn.ops.activations import IDENTITY, Activation
from composer_attn.ops.backends import convolution_kernels, layer_kernels, norm_kernels
from composer_attn.ops.backends.elementwise_kernels import NO_GATE
from composer_attn.ops.backends.launch import Call
from composer_attn.ops.backends.layout import all_like
from composer_attn.ops.backends.map_launches import MapLaunches, pointer
from composer_attn.ops.logits import Parameters
from composer_attn.ops.normalization import Running
from composer_attn.ops.recorded import in_full_precision


def takes_norm(
    numbers: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None
) -> bool:
    """Return whether the momentum of a norm, and the dtype of its parameters, permit a launch."""
    kept = () if running is None else running[:2]
    momentum = None if running is None else running.momentum
    return not isinstance(momentum, Tensor) and all_like(numbers, weight, bias, *kept)


def norm_launch(
    of: MapLaunches,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: Running | None,
    unit: bool = False,
) -> tuple[Call, list[int], list[Tensor]]:
    """Prepare a norm that :func:`takes_norm` accepts.

    Returns:
        The launch, the addresses of the norm's tensors, and the tensors.
    """
    given = (weight, bias, *(running[:2] if running is not None else (None, None)))
    flags: tuple[float | bool, ...] = (2, 0.0, False)
    if running is not None:
        flags = (running.number, float(running.momentum), running.fixed)
    described = (weight is not None, bias is not None, running is not None, unit)
    call = of.once(_normalizing, float(eps), *flags, *described)
    return call, [pointer(each) for each in given], [each for each in given if each is not None]


def layer_gradients(
    of: MapLaunches,
    parameters: Parameters,
    numbers: tuple[Tensor, Tensor],
    at: tuple[int, int, int, int, int],
    inner: Activation,
    added: bool,
) -> Parameters:
    """Return the gradients of two layers' parameters, and write that of the means.

    Args:
        of: the launches for the map.
        parameters: weight and bias of both layers.
        numbers: the tensors that contain the numbers.
        at: addresses of the gradients of the logits and (to be written) of the hidden layer; of the
            hidden layer before its activation; of the means and their gradient.
        inner: the activation between the layers.
        added: whether the gradient of the means is added to what is there.
    """
    d_logits, d_hidden, hidden, means, d_means = at
    width = cast(Tensor, parameters[0]).size(0)
    found = [None if each is None else torch.empty_like(each) for each in parameters]
    w1, b1, w2, b2 = [pointer(each) for each in parameters]
    holders = (*numbers, *[each for each in (*parameters, *found) if each is not None])
    run = of.once(layer, of.sizes[1], width, False, IDENTITY, inner, NO_GATE, True)
    run((d_logits, w2, 0, hidden, d_hidden), holders)
    run = of.once(_both_layers, width, (b1 != 0, b2 != 0), inner, added)
    results = [pointer(each) for each in found]
    run((d_logits, d_hidden, hidden, means, w1, d_means, *results), holders)
    return tuple(found)


def single_layer_gradients(d_logits: Tensor, means: Tensor, parameters: Parameters) -> Parameters:
    """Return the gradients of a single layer's weight and bias."""
    weight, bias = parameters
    with in_full_precision(means):
        d_weight = torch.mm(d_logits.t(), means).view_as(cast(Tensor, weight))
        return d_weight, None if bias is None else d_logits.sum(0)


def convolved(of: MapLaunches, size: int, gate: int) -> Call:
    """Prepare a convolution of the means, given ``means, kernel, s``."""
    return convolution_kernels.convolution(*of.sizes[:2], size, GATE=gate)


def layer(
    of: MapLaunches,
    inner: int,
    outer: int,
    bias: bool,
    after: Activation = IDENTITY,
    back: Activation = IDENTITY,
    gate: int = NO_GATE,
    rows: bool = False,
) -> Call:
    """Prepare a layer from ``inner`` to ``outer`` channels (:func:`.layer_kernels.layer`)."""
    return layer_kernels.layer(
        *(of.sizes[0], inner, outer, of.itemsize),
        rows=rows, bias=bias, after=after, back=back, gate=gate,
    )  # fmt: skip


def _both_layers(
    of: MapLaunches, width: int, biases: tuple[bool, bool], after: Activation, added: bool
) -> Call:
    samples, channels, _ = of.sizes
    sizes = (samples, channels, width, of.itemsize)
    return layer_kernels.layer_gradients(*sizes, biases, after=after, added=added)


def _normalizing(
    of: MapLaunches,
    eps: float,
    number: int,
    momentum: float,
    fixed: bool,
    weight: bool,
    bias: bool,
    kept: bool,
    unit: bool,
) -> Call:
    return norm_kernels.normalizing(
        *of.sizes[:2], number, EPS=eps, MOMENTUM=momentum, WEIGHT=weight, BIAS=bias, KEPT=kept,
        FIXED=fixed, UNIT=unit,
    )  # fmt: skip
