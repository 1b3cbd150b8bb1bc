"""Run a module on the meta device and record every operation of its forward.

Operations are recorded after dispatch to ATen, where ``nn.AdaptiveAvgPool2d(1)``,
``F.adaptive_avg_pool2d(x, 1)`` and ``x.mean((2, 3))`` are the same. The forward is recorded at two
input sizes: a value whose shape does not change between them has no spatial positions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from composer_attn.surgery.existing_attention.shape_only_copy import Shadow, no_traces

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Multiples of common windows and strides, square since some modules assume it; then small ones,
# for kernels that pool maps of one size. Size does not matter for cost on the meta device.
_SIZES = (((224,) * 3, (448,) * 3), ((8,) * 3, (12,) * 3))


_NORMS = (torch.ops.aten.native_batch_norm.default,)


class ChannelsLastError(ValueError):
    """A module takes channels-last feature maps."""


@dataclass(eq=False)
class Value:
    """A tensor in a recording.

    Attributes:
        operation: name of the operation that computed it, in torch's namespace ``aten``, without
            overload and trailing underscore; ``input``, or ``constant`` if no operation did.
        inputs: the tensors that it was computed from.
        shape: its shape, for an input of the first size.
        layer: name of the convolution that computed it, if one did.
        live: whether it depends on the input.
        grows: whether its size depends on the spatial size of the input.
    """

    operation: str
    inputs: tuple["Value", ...]
    shape: tuple[int, ...]
    layer: str | None = None
    live: bool = False
    grows: bool = False


def _normalized(args: tuple) -> tuple[Tensor, ...] | None:
    """Return a batch norm's meta outputs in evaluation mode, much faster than torch does."""
    x, _, _, mean, _, training = args[:6]
    if training or mean is None or mean.numel() != x.shape[1]:
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


@dataclass
class Recording:
    """The recording of a forward.

    Attributes:
        input: the input, of shape ``(N, C, *spatial)``.
        values: the results of all operations, in order.
        output: the output of the forward; None if it is not a single tensor.
        widths: size of dimension 1 of each module's first input tensor, by module name.
    """

    input: Value
    values: list[Value] = field(default_factory=list)
    output: Value | None = None
    widths: dict[str, int] = field(default_factory=dict)


class _Recorder(TorchDispatchMode):
    def __init__(self, shadow: Shadow, x: Tensor):
        super().__init__()
        self.recording = Recording(Value("input", (), tuple(x.shape), live=True))
        self._known = {id(x): self.recording.input}
        self._alive: list[Tensor] = [x]
        self._current: list[str] = []
        self._owners = {
            id(module._parameters.get("weight")): name
            for module, name in shadow.names.items()
            if isinstance(module, _CONVOLUTIONS)
        }
        self._size = x.numel()
        for module, name in shadow.names.items():
            is_conv = isinstance(module, _CONVOLUTIONS)
            module.register_forward_pre_hook(self._entering(name, is_conv))
            if is_conv:
                module.register_forward_hook(self._leave)

    def _entering(self, name: str, is_conv: bool) -> Callable:
        def enter(module: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                self.recording.widths.setdefault(name, args[0].shape[1])
                self._check_order(module, args[0])
            if is_conv:
                self._current.append(name)

        return enter

    def _check_order(self, module: nn.Module, x: Tensor) -> None:
        sides: tuple[int, ...] = (module.in_features,) if isinstance(module, nn.Linear) else ()
        sides = module.normalized_shape[-1:] if isinstance(module, nn.LayerNorm) else sides
        if sides and x.shape[-1] != sides[0] and x.numel() >= self._size:
            raise ChannelsLastError("it takes channels-last feature maps (N, H, W, C)")

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._current.pop()

    def value_of(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._known:
            self._alive.append(tensor)  # so that its id is not reused
            self._known[id(tensor)] = Value("constant", (), tuple(tensor.shape))
        return self._known[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(self.value_of(tensor) for tensor in given)
        results = _normalized(args) if func in _NORMS else None
        results = func(*args, **(kwargs or {})) if results is None else results
        layer = self._layer(args) if func is torch.ops.aten.convolution.default else None
        operation = func.overloadpacket.__name__.removesuffix("_")
        live = any(value.live for value in inputs)
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                value = Value(operation, inputs, tuple(tensor.shape), layer, live)
                self.recording.values.append(value)
                self._alive.append(tensor)
                self._known[id(tensor)] = value
        return results

    def _layer(self, args: tuple) -> str | None:
        current = self._current[-1] if self._current else None
        return self._owners.get(id(args[1]), current)


def record(
    module: nn.Module,
    channels: int,
    dimensions: int,
    trial: int = 0,
    *,
    enough: Callable[[Recording], bool] = lambda _: False,
) -> Recording:
    """Record the forward of a module on an input of shape ``(N, channels, *spatial)``.

    The module itself is not changed: copies on the meta device run instead.

    Args:
        module: any module.
        channels: number of input channels.
        dimensions: number of spatial dimensions.
        trial: index of the pair of input sizes.
        enough: returns whether the recording at the first size, where no value is known to grow, is
            sufficient.

    Raises:
        ChannelsLastError: it takes channels-last feature maps.
        Exception: whatever the forward raises, if it does not run on the meta device.
    """
    shapes = ((2, channels, *size[:dimensions]) for size in _SIZES[trial])
    with no_traces():
        first = _record_once(module, next(shapes))
        if enough(first):
            return first
        second = _record_once(module, next(shapes))
    operations = [[value.operation for value in one.values] for one in (first, second)]
    if operations[0] != operations[1]:
        raise ValueError("its forward does different things at different sizes")
    first.input.grows = True
    for value, other in zip(first.values, second.values, strict=True):
        value.grows = value.shape != other.shape
    return first


def _record_once(module: nn.Module, shape: tuple[int, ...]) -> Recording:
    shadow = Shadow(module)
    x = torch.empty(shape, device="meta")
    recorder = _Recorder(shadow, x)
    with recorder:
        output = shadow.module(x)
    if isinstance(output, Tensor):
        recorder.recording.output = recorder.value_of(output)
    return recorder.recording
