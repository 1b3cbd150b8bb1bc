"""Recognize attention in a recording: pooling, layers and a gate that rescale their input.

Values are of three kinds. *Carriers* are the complete input, as it is or multiplied by scales.
*Contexts* depend on the input but have no spatial positions, having been pooled. All others are
feature maps computed by layers.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

from composer_attn.surgery.existing_attention.recording import Recording, Value

# The same values in another shape.
_VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "permute",
    "transpose", "t", "alias", "clone", "_to_copy", "detach", "lift_fresh", "pixel_shuffle",
    "channel_shuffle", "native_channel_shuffle", "contiguous",
})  # fmt: skip
# The same values at more positions.
_BROADCASTS = frozenset({
    "expand", "repeat", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
})  # fmt: skip
# A subset of the values.
_PICKS = frozenset({
    "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "narrow", "index",
    "index_select", "gather", "unfold", "as_strided",
})  # fmt: skip
# Operations that scales may end with.
_GATES = frozenset({
    "sigmoid", "hardsigmoid", "tanh", "hardtanh", "clamp", "clamp_min", "relu", "_softmax", "exp",
    "log_sigmoid_forward", "softplus",
})  # fmt: skip
# Operations that suffice without any layer. Others do not: norms also multiply by what they pooled.
_SQUASHING = frozenset({"sigmoid", "hardsigmoid", "tanh", "hardtanh", "_softmax", "exp"})
_LAYERS = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm"})
_SUMS = frozenset({"add", "sub", "maximum", "minimum"})
# Operations that pool over positions, in all or in one of the spatial dimensions.
_POOLINGS = frozenset({
    "mean", "sum", "amax", "max", "logsumexp", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool2d", "avg_pool3d",
    "max_pool2d_with_indices", "max_pool3d_with_indices",
})  # fmt: skip


def shows_nothing(recording: Recording) -> bool:
    """Return whether a recording cannot contain attention, whichever of its values grow."""
    output = recording.output
    products = any(v.operation == "mul" and _lives(v) > 1 for v in recording.values)
    return not products and (output is None or _squashing_under(output) is None)


class Reading:
    """The attention recognized in a recording."""

    def __init__(self, recording: Recording):
        self._recording = recording
        self._carried: dict[Value, bool | None] = {recording.input: False}
        self._regions: dict[Value, list[Value]] = {}

    @cached_property
    def rescales(self) -> bool:
        """Whether the output is the input, rescaled by values pooled from it."""
        output = self._recording.output
        if output is None or output.shape != self._recording.input.shape:
            return False
        return self._carrier(output) is True

    @cached_property
    def is_scales(self) -> bool:
        """Whether the output is only the scales, to be multiplied elsewhere."""
        output = self._recording.output
        if output is None or not output.live:
            return False
        gate, x = _squashing_under(output), self._recording.input
        if gate is None:
            return False
        if not output.grows:
            size = _size(output) == x.shape[0] * x.shape[1]
            return size and bool(self._region(gate)) and not self._has_layers_before(gate)
        shape = (x.shape[0], 1, *x.shape[2:])
        return output.shape == shape and self._pools_channels(gate)

    @cached_property
    def mixes_positions(self) -> bool:
        """Whether positions interact, as in self-attention."""
        return any(
            (v.operation in ("bmm", "baddbmm") or "scaled_dot_product" in v.operation)
            and _lives(v) > 1
            for v in self._recording.values
        )

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the convolutions that compute scales, whatever the scales multiply."""
        inside: dict[str, None] = {}
        outside = set()
        regions = {v for product in self._products() for v in self._scaling(product)}
        for value in self._recording.values:
            if value.layer is not None and value in regions:
                inside[value.layer] = None
            elif value.layer is not None:
                outside.add(value.layer)
        return tuple(name for name in inside if name not in outside)

    def _products(self) -> Iterator[Value]:
        return (v for v in self._recording.values if v.operation == "mul" and v.live and v.grows)

    def _scaling(self, product: Value) -> list[Value]:
        for map_, scales in _sides(product):
            if map_.grows and map_.live:
                region = self._region(_base(scales))
                if region:
                    return region
        return []

    def _carrier(self, value: Value) -> bool | None:
        """Return True if a value is the rescaled input, False if the plain input, else None."""
        if value not in self._carried:
            self._carried[value] = self._carrier_by_operation(value)
        return self._carried[value]

    def _carrier_by_operation(self, value: Value) -> bool | None:
        operation, inputs = value.operation, value.inputs
        if operation in _VIEWS or operation in _PICKS:
            return self._carrier(inputs[0])
        if operation in ("mul", "div"):
            return self._rescaled(value)
        carried = [self._carrier(v) for v in inputs]
        if operation == "cat":
            weak = [
                c if c is not None else self._weakly(v)
                for c, v in zip(carried, inputs, strict=True)
            ]
            return None if None in weak or True not in carried else True
        if operation in _SUMS and len(inputs) == 2 and None not in carried:
            return any(carried)
        return None

    def _rescaled(self, product: Value) -> bool | None:
        if len(product.inputs) == 1:
            return self._carrier(product.inputs[0])
        for map_, scales in _sides(product):
            carried = self._carrier(map_)
            if carried is None:
                continue
            if not scales.live:
                return carried
            if product.operation == "div":
                return None
            if self._region(_base(scales)) or self._is_gated_map(scales, map_):
                return True
        return None

    def _weakly(self, value: Value) -> bool | None:
        """Return False if a value is the input times a gate for each position, else None."""
        if value.operation in _VIEWS or value.operation in _PICKS:
            return self._weakly(value.inputs[0])
        if value.operation != "mul":
            return None
        for map_, scales in _sides(value):
            if self._carrier(map_) is not None and _gate_under(scales) is not None:
                return False
        return None

    def _is_gated_map(self, scales: Value, map_: Value) -> bool:
        """Return whether scales vary by position, as in spatial or coordinate attention."""
        if not scales.live:
            return False
        base = _base(scales)
        gate = _gate_under(base)
        if gate is None:
            if base.operation in ("mul", "add"):
                sides = [v for v in base.inputs if v.live]
                return len(sides) > 0 and all(self._is_gated_map(v, map_) for v in sides)
            return bool(self._region(base))
        if not gate.grows:
            return bool(self._region(gate))
        return _size(gate) < _size(map_) or self._sees_pooled(gate, map_)

    def _sees_pooled(self, gate: Value, map_: Value) -> bool:
        between = _ancestors(gate, lambda v: v is not map_)
        return any(
            v.live and (not v.grows or v.operation in _POOLINGS or _is_coarser(v, map_))
            for v in between
        )

    def _region(self, scales: Value) -> list[Value]:
        """List the values between a pooling and scales without positions; empty if none."""
        if scales not in self._regions:
            self._regions[scales] = self._find_region(scales)
        return self._regions[scales]

    def _find_region(self, scales: Value) -> list[Value]:
        if scales.grows or not scales.live:
            return []
        above = _ancestors(scales, lambda v: v.live and not v.grows)
        region = [v for v in (scales, *above) if v.live and not v.grows]
        pooled = [v for v in region if any(i.grows for i in v.inputs)]
        if not any(v.operation not in _PICKS for v in pooled):
            return []
        learned = (v for v in region if v.operation in _LAYERS and v not in pooled)
        gated = any(v.operation in _SQUASHING for v in region)
        return region if gated or any(learned) else []

    def _has_layers_before(self, scales: Value) -> bool:
        """Return whether layers act on the feature map before it is pooled."""
        return any(
            v.operation in (*_LAYERS, "native_batch_norm") and v.grows for v in _ancestors(scales)
        )

    def _pools_channels(self, gate: Value) -> bool:
        """Return whether layers see the input only through a pooling over its channels."""
        x = self._recording.input
        pooled = (x.shape[0], *x.shape[2:]), (x.shape[0], 1, *x.shape[2:])

        def is_pooled(value: Value) -> bool:
            whole = any(_base(v) is x for v in value.inputs)
            return whole and value.operation in _POOLINGS and value.shape in pooled

        seen = _ancestors(gate, lambda v: not is_pooled(v))
        return x not in seen and any(v.operation in _LAYERS for v in seen)


def _sides(product: Value) -> Iterator[tuple[Value, Value]]:
    if len(product.inputs) == 2:
        first, second = product.inputs
        yield first, second
        yield second, first


def _base(value: Value) -> Value:
    """Return the value before any broadcasts and views."""
    while value.operation in _VIEWS or (value.operation in _BROADCASTS and value.inputs):
        value = value.inputs[0]
    return value


def _gate_under(value: Value) -> Value | None:
    """Return the gate that scales end with, ignoring constants; None if there is none."""
    value = _base(value)
    while value.operation in ("add", "mul", "div", "sub", "rsub", "neg"):
        live = [v for v in value.inputs if v.live]
        if len(live) != 1:
            return None
        value = _base(live[0])
    return value if value.operation in _GATES else None


def _squashing_under(value: Value) -> Value | None:
    """Return the gate that a value ends with if it is a squashing one, else None."""
    gate = _gate_under(value)
    if gate is None or gate.operation not in _SQUASHING:
        return None
    # By itself, hardtanh is ReLU6.
    return None if gate.operation == "hardtanh" and gate is _base(value) else gate


def _lives(value: Value) -> int:
    return sum(v.live for v in value.inputs)


def _ancestors(value: Value, follow: Callable[[Value], bool] = lambda _: True) -> list[Value]:
    """List the ancestors of a value, each once, continuing only from those to be followed."""
    found: dict[Value, None] = {}
    queue = list(value.inputs)
    while queue:
        one = queue.pop()
        if one not in found:
            found[one] = None
            queue.extend(one.inputs if follow(one) else ())
    return list(found)


def _is_coarser(value: Value, map_: Value) -> bool:
    positions, finer = value.shape[2:], map_.shape[2:]
    return len(positions) == len(finer) and positions < finer


def _size(value: Value) -> int:
    size = 1
    for side in value.shape:
        size *= side
    return size
