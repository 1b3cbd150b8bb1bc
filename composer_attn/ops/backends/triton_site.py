"""A whole site in Triton kernels: attention and batch norm with as few launches as possible.

The counterpart of :mod:`.cpp_site` for CUDA. All ``(N, C)`` numbers of a site stay in one
workspace. For SE there are five launches forward and five backward, for ECA four and three
(:mod:`.map_launches`), and one by torch for the gradient of the kernel.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from composer_attn.ops.activations import IDENTITY, RELU
from composer_attn.ops.backends import map_launches as maps
from composer_attn.ops.backends import norm_kernels, tile_kernels
from composer_attn.ops.backends.elementwise_kernels import GATES
from composer_attn.ops.backends.launch import Call
from composer_attn.ops.backends.layout import like
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
    takes_norm,
)
from composer_attn.ops.logits import Parameters
from composer_attn.ops.normalization import Running

__all__ = [
    "GATES",
    "TritonLayers",
    "TritonNorm",
    "TritonSite",
    "excite",
    "gradient",
    "is_available",
    "load",
    "normalize",
    "prepare_layers",
    "prepare_norm",
    "write",
]


class TritonSite(NamedTuple):
    """What the calls of a site share.

    Attributes:
        of: the launches for its map.
        is_kernel: whether the layers are a convolution along the channels, not two linear layers.
        width: size of the kernel, or number of hidden channels.
        gate: one of :data:`.elementwise_kernels.GATES`.
    """

    of: MapLaunches
    is_kernel: bool
    width: int
    gate: int

    @property
    def hidden(self) -> int:
        """How many numbers the hidden layer has."""
        return 0 if self.is_kernel else self.of.sizes[0] * self.width

    @property
    def kernel_size(self) -> int:
        """Size of the kernel; 0 if there is none."""
        return self.width if self.is_kernel else 0

    def views(self, work: Tensor) -> list[Any]:
        """Return views of a workspace: mean, variance, s, scale, shift; mu, inverse; hidden."""
        samples, channels, _ = self.of.sizes
        begins, whole = self.of.once(_offsets, self.hidden), samples * channels
        numbers = [work[at : at + whole].view(samples, channels) for at in begins[:5]]
        of_norm = [work[at : at + channels] for at in begins[5:7]]
        if self.is_kernel:
            return [*numbers, *of_norm, None]
        hidden = work[begins[7] : begins[7] + self.hidden].view(samples, self.width)
        return [*numbers, *of_norm, hidden.relu()]


def load() -> None:
    """Raise unless kernels can run."""
    tile_kernels.load()


def is_available() -> bool:
    """Return whether the calls can be used: whenever the kernels can."""
    return True


class TritonLayers(NamedTuple):
    """The layers and gate of an attention."""

    is_kernel: bool
    width: int
    gate: int
    parameters: Parameters


def prepare_layers(is_kernel: bool, gate: int, parameters: Parameters) -> TritonLayers:
    """Prepare the layers of an attention (:func:`.cpp_site.prepare_layers`)."""
    first = cast(Tensor, parameters[0])  # only biases can be absent
    width = first.numel() if is_kernel else first.size(0)
    return TritonLayers(is_kernel, width, gate, parameters)


def excite(x: Tensor, last: bool, layers: TritonLayers) -> tuple[TritonSite, Tensor]:
    """Compute moments and scales of a feature map (:func:`.cpp_site.excite`)."""
    is_kernel, width, gate, parameters = layers
    of, first = launches_of(x, last), cast(Tensor, parameters[0])
    site = TritonSite(of, is_kernel, width, gate)
    offsets = of.once(_offsets, site.hidden)
    work = torch.empty(offsets[-1], dtype=of.of_numbers, device=x.device)
    mean, variance, s, _, _, _, _, hidden, _ = addresses(work, offsets)
    holders = (x, work, *[each for each in parameters if each is not None])
    with of.here():
        of.once(maps.moments)((x.data_ptr(), mean, variance), holders)
        if is_kernel:
            of.once(convolved, width, gate)((mean, first.data_ptr(), s), holders)
        else:
            w1, b1, w2, b2 = [pointer(each) for each in parameters]
            of.once(layer, of.sizes[1], width, b1 != 0)((mean, w1, b1, 0, hidden), holders[1:])
            of.once(layer, width, of.sizes[1], b2 != 0, RELU, IDENTITY, gate)(
                (hidden, w2, b2, 0, s), holders[1:]
            )
    return site, work


class TritonNorm(NamedTuple):
    """A batch norm, with the running statistics of one call."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    running: Running | None


def prepare_norm(
    work: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, running: Running | None
) -> TritonNorm | None:
    """Prepare a batch norm (:func:`.cpp_site.prepare_norm`)."""
    if not takes_norm(work, weight, bias, running):
        return None
    return TritonNorm(weight, bias, eps, running)


def normalize(site: TritonSite, work: Tensor, norm: TritonNorm, number: int) -> None:
    """Normalize the scaled map, up to scale and shift (:func:`.cpp_site.normalize`)."""
    weight, bias, eps, running = norm
    if running is not None and running.number != number:
        running = running._replace(number=number)
    run, given, holders = norm_launch(site.of, weight, bias, eps, running)
    offsets = site.of.once(_offsets, site.hidden)
    mean, variance, s, scale, shift, mu, inverse, _, _ = addresses(work, offsets)
    with site.of.here():
        run((s, mean, variance, *given, scale, shift, mu, inverse, 0), (work, *holders))


def write(site: TritonSite, work: Tensor, x: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """Write the normalized map, after an addition and a ReLU."""
    of = site.of
    x = like(x, of.last)
    y = torch.empty_like(x)
    joined = None if shortcut is None else like(shortcut, of.last)
    _, _, _, scale, shift, *_ = addresses(work, of.once(_offsets, site.hidden))
    holders = (x, work, y) if joined is None else (x, work, y, joined)
    with of.here():
        run = of.once(maps.affine, False, joined is not None, relu)
        run((x.data_ptr(), scale, shift, pointer(joined), y.data_ptr()), holders)
    return y


def gradient(
    site: TritonSite,
    work: Tensor,
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    relu: bool,
    fixed: bool,
    weight: Tensor | None,
    parameters: Parameters,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Parameters]:
    """Differentiate all of it (:func:`.cpp_site.gradient`)."""
    of = site.of
    x = like(x, of.last)
    dy, y = like(dy, of.last), None if y is None else like(y, of.last)
    offsets = of.once(_scratch_offsets, site.hidden, site.kernel_size)
    scratch = torch.empty(offsets[-1], dtype=work.dtype, device=work.device)
    g, dx = dy if y is None else torch.empty_like(x), None
    d_weight, d_bias = [
        torch.empty(of.sizes[1], dtype=work.dtype, device=work.device) for _ in range(2)
    ]
    mean, variance, s, scale, shift, mu, inverse, _, _ = addresses(
        work, of.once(_offsets, site.hidden)
    )
    d_shift, d_scale, d_s, d_mean, d_variance, _, _ = addresses(scratch, offsets)
    masked = relu and y is None
    holders = (x, work, scratch, dy, g) if y is None else (x, work, scratch, dy, g, y)
    with of.here():
        of_mask = (scale, shift) if masked else (0, 0)
        of_maps = (dy.data_ptr(), x.data_ptr(), mean, *of_mask, pointer(y), g.data_ptr())
        run = of.once(maps.gradient_sums, False, masked, y is not None)
        run((*of_maps, d_shift, d_scale), holders)
        kernel = parameters[0] if site.is_kernel else None
        flags = (weight is not None, fixed, site.gate, site.kernel_size)
        run = of.once(_normalizing_gradient, *flags)
        parts = None if kernel is None else scratch.new_empty(run.programs, site.width)
        given = (d_scale, d_shift, s, mean, variance, mu, inverse, pointer(weight), pointer(kernel))
        results = (d_s, d_mean, d_variance, *[pointer(e) for e in (d_weight, d_bias, parts)])
        present = [each for each in (weight, kernel, parts) if each is not None]
        run((*given, *results), (work, scratch, d_weight, d_bias, *present))
        if kernel is None or parts is None:
            of_layers = _layer_gradients(site, work, scratch, parameters)
        else:
            of_layers = (parts.sum(0).view_as(kernel),)
        if needs_dx:
            dx = torch.empty_like(x)
            run = of.once(maps.input_gradient, False, masked, not fixed)
            numbers = (scale, mean, d_mean, d_variance, shift if masked else 0)
            run((g.data_ptr(), x.data_ptr(), *numbers, dx.data_ptr()), (*holders, dx))
    return dx, g, (d_weight, d_bias, *of_layers)


def _layer_gradients(
    site: TritonSite, work: Tensor, scratch: Tensor, parameters: Parameters
) -> Parameters:
    """Return the gradients of the layers' parameters, and add that of the means to ``d_mean``."""
    of, numbers = site.of, (work, scratch)
    mean, *_, hidden, _ = addresses(work, of.once(_offsets, site.hidden))
    _, _, d_logits, d_mean, _, d_hidden, _ = addresses(
        scratch, of.once(_scratch_offsets, site.hidden, 0)
    )
    at = (d_logits, d_hidden, hidden, mean, d_mean)
    return layer_gradients(of, parameters, numbers, at, RELU, added=True)


def _offsets(of: MapLaunches, hidden: int) -> tuple[int, ...]:
    """Mean, variance, s, scale, shift; mu, inverse; hidden channels, before the ReLU."""
    samples, channels, _ = of.sizes
    return of.offsets(*[samples * channels] * 5, channels, channels, hidden)


def _scratch_offsets(of: MapLaunches, hidden: int, kernel_size: int) -> tuple[int, ...]:
    """The gradients of shift, scale, logits, mean, variance; of the hidden channels."""
    samples, channels, _ = of.sizes
    each = samples * channels
    of_logits = norm_kernels.numbers_of_gradient(samples, channels, kernel_size)
    return of.offsets(each, each, of_logits, each, each, hidden)


def _normalizing_gradient(of: MapLaunches, *settings: Any) -> Call:
    return norm_kernels.normalizing_gradient(*of.sizes[:2], *settings)
