"""Run a module on shapes alone, and record every operation: what its forward does, as written.

The recording is one of torch's own operations, into which whatever a forward calls comes apart:
``nn.AdaptiveAvgPool2d(1)``, ``F.adaptive_avg_pool2d(x, 1)`` and ``x.mean((2, 3))`` are one. It is
taken at two sizes of the input: what stays as large as it was no longer has positions in it.
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
# Multiples of what windows and strides usually are, of equal sides, as some take for granted; then
# small ones, for kernels that pool a map of one size. Shapes cost nothing.
_SIZES = (((224,) * 3, (448,) * 3), ((8,) * 3, (12,) * 3))


_NORMS = (torch.ops.aten.native_batch_norm.default,)


class ChannelsLastError(ValueError):
    """A module takes maps whose last side is the channels."""


@dataclass(eq=False)
class Value:
    """A tensor of a recording.

    Attributes:
        operation: what it is the result of: the name in torch's namespace ``aten``, without
            overload and underscore; ``input``, or ``constant`` for what comes from nowhere.
        inputs: the tensors that it was computed from.
        shape: its shape, the input being of the first size.
        layer: name of the convolution that computed it.
        live: whether it depends on the input.
        grows: whether it is larger where the input has more positions.
    """

    operation: str
    inputs: tuple["Value", ...]
    shape: tuple[int, ...]
    layer: str | None = None
    live: bool = False
    grows: bool = False


def _normalized(args: tuple) -> tuple[Tensor, ...] | None:
    """Return what a batch norm returns in evaluation; torch's way to tell it takes far longer."""
    x, _, _, mean, _, training = args[:6]
    if training or mean is None or mean.numel() != x.shape[1]:
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


@dataclass
class Recording:
    """What a forward did.

    Attributes:
        input: the one input, of shape ``(N, C, *spatial)``.
        values: all results, in order.
        output: the result of the forward; None where it is not one tensor.
        widths: second sides of the first tensor that each module was called on, by module name.
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
            raise ChannelsLastError("it takes maps whose channels are the last side")

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._current.pop()

    def value_of(self, tensor: Tensor) -> Value:
        if id(tensor) not in self._known:
            self._alive.append(tensor)  # so that its id is not another's
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
    """Record the forward of a module on one input of shape ``(N, channels, *spatial)``.

    The module is not touched: copies without values run.

    Args:
        module: any.
        channels: the input's channels.
        dimensions: how many spatial ones it has.
        trial: which pair of sizes.
        enough: says of the recording at the first size, in which nothing grows, that it will do.

    Raises:
        ChannelsLastError: it takes maps whose last side is the channels.
        Exception: whatever the forward raises, where it does not run on shapes alone.
    """
    shapes = ((2, channels, *size[:dimensions]) for size in _SIZES[trial])
    with no_traces():
        first = _record_once(module, next(shapes))
        if enough(first):
            return first
        second = _record_once(module, next(shapes))
    operations = [[value.operation for value in one.values] for one in (first, second)]
    if operations[0] != operations[1]:
        raise ValueError("its forward does something else at another size")
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
