"""Norm, activation and attention in Triton kernels, with as few launches as possible.

The counterpart of :mod:`.cpp_region` for CUDA: for two layers there are six launches forward and
five backward, for a convolution along the channels five and three (:mod:`.map_launches`). All
samples share the norm's numbers, which are lines ``(C,)``.
"""

from typing import Any, cast

import torch
from torch import Tensor

from composer_attn.ops.activations import IDENTITY, Activation
from composer_attn.ops.backends import map_launches as maps
from composer_attn.ops.backends import tile_kernels
from composer_attn.ops.backends.elementwise_kernels import GATES, NO_GATE
from composer_attn.ops.backends.launch import Call
from composer_attn.ops.backends.layout import is_last, like
from composer_attn.ops.backends.map_launches import (
    MapLaunches,
    addresses,
    launches_of,
    pointer,
)
from composer_attn.ops.backends.number_launches import (
    convolved,
    layer,
    layer_gradients,
    norm_launch,
    single_layer_gradients,
    takes_norm,
)
from composer_attn.ops.backends.region_interface import RegionLayers, RegionNumbers, four
from composer_attn.ops.backends.region_kernels import norm_gradient, normalized_means
from composer_attn.ops.logits import Parameters
from composer_attn.ops.manual_gradients import Norm

_NO_LAYERS = RegionLayers("none", 0, IDENTITY, ("", ""))


def load() -> None:
    """Raise unless kernels can run."""
    tile_kernels.load()


def is_available() -> bool:
    """Return whether the calls can be used: whenever the kernels can."""
    return True


def normalize(
    x: Tensor, norm: Norm, weight: Tensor | None, bias: Tensor | None
) -> RegionNumbers | None:
    """Normalize (:meth:`.region_interface.RegionCalls.normalize`)."""
    last = not x.is_contiguous()
    if (last and not is_last(x)) or x.is_neg():
        return None
    of = launches_of(x, last)
    samples, channels, _ = of.sizes
    statistics = torch.empty(2 * channels, dtype=of.of_numbers, device=x.device)
    if not takes_norm(statistics, weight, bias, norm.running):
        return None
    run, given, holders = norm_launch(of, weight, bias, norm.eps, norm.running, unit=True)
    whole = samples * channels
    work = torch.empty(5 * whole, dtype=of.of_numbers, device=x.device)
    line = torch.empty_like(statistics)
    mean, variance, one, scale, shift = addresses(work, tuple(range(0, 5 * whole, whole)))
    mu, inverse = addresses(statistics, (0, channels))
    with of.here():
        if not norm.fixed:
            of.once(maps.moments)((x.data_ptr(), mean, variance), (x, work))
        numbers = (one, mean, variance, *given, scale, shift, mu, inverse, line.data_ptr())
        run(numbers, (work, statistics, line, *holders))
    return RegionNumbers(work, statistics, line, of)


def attend(
    x: Tensor,
    numbers: RegionNumbers,
    bias: Tensor | None,
    fixed: bool,
    activation: Activation,
    layers: RegionLayers,
    parameters: Parameters,
) -> Tensor:
    """Compute an attention (:meth:`.region_interface.RegionCalls.attend`)."""
    of: MapLaunches = numbers.sizes
    channels = of.sizes[1]
    offsets = _attended_offsets(of, layers)
    attended = torch.empty(offsets[-1], dtype=of.of_numbers, device=x.device)
    m, s, hidden, _ = addresses(attended, offsets)
    scale, shift = addresses(numbers.line, (0, channels))
    first, b1, second, b2 = four(parameters)
    holders = (x, numbers.line, attended, *[each for each in parameters if each is not None])
    gate = GATES[layers.gate]
    with of.here():
        if activation == IDENTITY and not fixed:
            mean, mu = numbers.work.data_ptr(), numbers.statistics.data_ptr()
            of_norm = (numbers.work, numbers.statistics, *(() if bias is None else (bias,)))
            run = of.once(_normalized_means, bias is not None)
            run((mean, mu, scale, pointer(bias), m), (*of_norm, *holders[1:]))
        else:
            run = of.once(maps.activated_means, activation)
            run((x.data_ptr(), scale, shift, m), holders)
        if layers.kind == "kernel":
            run = of.once(convolved, layers.width, gate)
            run((m, pointer(first), s), holders[1:])
        elif layers.kind == "one":
            run = of.once(layer, channels, channels, b1 is not None, IDENTITY, IDENTITY, gate)
            run((m, pointer(first), pointer(b1), 0, s), holders[1:])
        else:
            run = of.once(layer, channels, layers.width, b1 is not None)
            run((m, pointer(first), pointer(b1), 0, hidden), holders[1:])
            run = of.once(
                layer, layers.width, channels, b2 is not None, layers.inner, IDENTITY, gate
            )
            run((hidden, pointer(second), pointer(b2), 0, s), holders[1:])
    return attended


def write(
    x: Tensor,
    numbers: RegionNumbers,
    attended: Tensor | None,
    shortcut: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Write the output of the activation or, given its numbers, of the attention."""
    of: MapLaunches = numbers.sizes
    channels = of.sizes[1]
    y, joined = torch.empty_like(x), None if shortcut is None else like(shortcut, of.last)
    line = addresses(numbers.line, (0, channels))
    s = 0 if attended is None else addresses(attended, _attended_offsets(of, _NO_LAYERS))[1]
    holders = [x, numbers.line, y, *[each for each in (attended, joined) if each is not None]]
    with of.here():
        run = of.once(maps.activate, activation, attended is not None, joined is not None)
        run((x.data_ptr(), *line, s, pointer(joined), y.data_ptr()), holders)
    return y


def write_sum(x: Tensor, numbers: RegionNumbers, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Write the output of the norm, after an addition and a ReLU."""
    of: MapLaunches = numbers.sizes
    y, joined = torch.empty_like(x), None if shortcut is None else like(shortcut, of.last)
    line = addresses(numbers.line, (0, of.sizes[1]))
    holders = (x, numbers.line, y) if joined is None else (x, numbers.line, y, joined)
    with of.here():
        run = of.once(maps.affine, True, joined is not None, relu)
        run((x.data_ptr(), *line, pointer(joined), y.data_ptr()), holders)
    return y


def gradient(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    statistics: Tensor,
    line: Tensor,
    attended: Tensor | None,
    weight: Tensor | None,
    fixed: bool,
    activation: Activation,
    layers: RegionLayers | None,
    parameters: Parameters,
    sizes: MapLaunches,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate it (:meth:`.region_interface.RegionCalls.gradient`)."""
    of, channels, x = sizes, sizes.sizes[1], like(x, sizes.last)
    g = like(dy if y is None else torch.where(y <= 0, 0, dy), of.last)
    offsets = of.once(_scratch_offsets, _hidden_of(of, layers))
    scratch = torch.empty(offsets[-1], dtype=of.of_numbers, device=x.device)
    of_z, of_zx, d_logits, of_one, of_x, d_m, slope, d_mean, d_variance, d_hidden, _ = addresses(
        scratch, offsets
    )
    mu, inverse = addresses(statistics, (0, channels))
    scale, shift = addresses(line, (0, channels))
    s = 0 if attended is None else addresses(attended, _attended_offsets(of, _NO_LAYERS))[1]
    gate = NO_GATE if layers is None else GATES[layers.gate]
    of_norm = [torch.empty(channels, dtype=of.of_numbers, device=x.device) for _ in range(2)]
    numbers = (statistics, line, scratch, *(() if attended is None else (attended,)))
    dx = None
    of_layers: Parameters = ()
    with of.here():
        run = of.once(maps.activated_sums, activation, attended is not None, gate)
        sums = (of_z, of_zx, d_logits, of_one, of_x)
        run((g.data_ptr(), x.data_ptr(), mu, scale, shift, s, *sums), (x, g, *numbers))
        kernel = parameters[0] if layers is not None and layers.kind == "kernel" else None
        if layers is not None and attended is not None and kernel is None:
            of_layers = _layer_gradients(
                of, layers, parameters, (attended, scratch), (d_logits, d_hidden, d_m)
            )
        size = 0 if kernel is None else kernel.numel()
        run = of.once(_norm_gradient, weight is not None, fixed, attended is not None, size)
        parts = None if kernel is None else scratch.new_empty(run.programs, size)
        of_kernel = (d_logits, pointer(kernel), pointer(attended))  # which begins with the means
        given = (of_z, of_zx, s, of_one, of_x, d_m, mu, inverse, pointer(weight), *of_kernel)
        results = (slope, d_mean, d_variance, *[pointer(each) for each in (*of_norm, parts)])
        present = [each for each in (weight, kernel, parts) if each is not None]
        run((*given, *results), (scratch, *numbers, *of_norm, *present))
        if kernel is not None and parts is not None:
            of_layers = (parts.sum(0).view_as(kernel),)
        if needs_dx:
            dx = torch.empty_like(x)
            run = of.once(maps.activated_gradient, activation, attended is not None, not fixed)
            of_map = (scale, shift, s, d_m, mu, d_mean, d_variance)
            run((g.data_ptr(), x.data_ptr(), *of_map, dx.data_ptr()), (x, g, dx, *numbers))
    return dx, g, (*of_norm, *of_layers)


def _layer_gradients(
    of: MapLaunches,
    layers: RegionLayers,
    parameters: Parameters,
    numbers: tuple[Tensor, Tensor],
    results: tuple[int, int, int],
) -> Parameters:
    """Return the gradients of the layers' parameters, and write those of the means."""
    d_logits, d_hidden, d_m = results
    m, _, hidden, _ = addresses(numbers[0], _attended_offsets(of, layers))
    first = cast(Tensor, parameters[0])
    if layers.kind == "one":
        channels = of.sizes[1]
        run = of.once(layer, channels, channels, False, IDENTITY, IDENTITY, NO_GATE, True)
        run((d_logits, first.data_ptr(), 0, 0, d_m), (*numbers, first))
        return _outer(of, *numbers, parameters)
    at = (d_logits, d_hidden, hidden, m, d_m)
    return layer_gradients(of, parameters, numbers, at, layers.inner, added=False)


def _outer(
    of: MapLaunches, attended: Tensor, scratch: Tensor, parameters: Parameters
) -> Parameters:
    """Return the gradients of a single layer's parameters."""
    samples, channels, _ = of.sizes
    whole, at = samples * channels, of.once(_scratch_offsets, 0)[2]
    m = attended[:whole].view(samples, channels)
    d_logits = scratch[at : at + whole].view(samples, channels)
    return single_layer_gradients(d_logits, m, parameters)


def sum_gradient(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    statistics: Tensor,
    weight: Tensor | None,
    fixed: bool,
    sizes: MapLaunches,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate a norm and an addition (:meth:`.region_interface.RegionCalls.sum_gradient`)."""
    of, channels, x = sizes, sizes.sizes[1], like(x, sizes.last)
    dy, y = like(dy, of.last), None if y is None else like(y, of.last)
    g, dx = dy if y is None else torch.empty_like(x), None
    offsets = of.once(_scratch_offsets, 0)
    scratch = torch.empty(offsets[-1], dtype=of.of_numbers, device=x.device)
    b, d, _, _, _, _, slope, d_mean, d_variance, _, _ = addresses(scratch, offsets)
    mu, inverse = addresses(statistics, (0, channels))
    of_norm = [torch.empty(channels, dtype=of.of_numbers, device=x.device) for _ in range(2)]
    holders = (x, dy, g, statistics, scratch, *(() if y is None else (y,)))
    of_weight = () if weight is None else (weight,)
    with of.here():
        run = of.once(maps.gradient_sums, True, False, y is not None)
        run((dy.data_ptr(), x.data_ptr(), mu, 0, 0, pointer(y), g.data_ptr(), b, d), holders)
        run = of.once(_norm_gradient, weight is not None, fixed, False, 0)
        given = (b, d, 0, 0, 0, 0, mu, inverse, pointer(weight), 0, 0, 0)
        results = (slope, d_mean, d_variance, *[each.data_ptr() for each in of_norm], 0)
        run((*given, *results), (scratch, statistics, *of_norm, *of_weight))
        if needs_dx:
            dx = torch.empty_like(x)
            run = of.once(maps.input_gradient, True, False, not fixed)
            of_map = (slope, mu, d_mean, d_variance, 0)
            run((g.data_ptr(), x.data_ptr(), *of_map, dx.data_ptr()), (*holders, dx))
    return dx, g, tuple(of_norm)


def _hidden_of(of: MapLaunches, layers: RegionLayers | None) -> int:
    return of.sizes[0] * layers.width if layers is not None and layers.kind == "two" else 0


def _attended_offsets(of: MapLaunches, layers: RegionLayers) -> tuple[int, ...]:
    """Return where means, scales and hidden channels begin, one right after another."""
    whole = of.sizes[0] * of.sizes[1]
    return 0, whole, 2 * whole, 2 * whole + _hidden_of(of, layers)


def _scratch_offsets(of: MapLaunches, hidden: int) -> tuple[int, ...]:
    """Five sums; the gradient of the means; slope, gradients of moments; the hidden gradient."""
    samples, channels, _ = of.sizes
    return of.offsets(*[samples * channels] * 6, *[channels] * 3, hidden)


def _normalized_means(of: MapLaunches, bias: bool) -> Call:
    return normalized_means(*of.sizes[:2], bias)


def _norm_gradient(of: MapLaunches, *settings: Any) -> Call:
    return norm_gradient(*of.sizes, *settings)
