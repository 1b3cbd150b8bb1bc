"""Find the layer whose feature map a heat map is made from, by running the network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError, ModelError
from composer_attn.surgery.names import unwrapped, walk

# Height and width that a feature map should have to tell anything of places.
_ENOUGH = 4


def forward_shapes(
    network: nn.Module, run: Callable[[], Any]
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Run a network, and return its output and the shapes of its modules' outputs.

    Args:
        network: the network.
        run: calls it.

    Returns:
        What ``run`` returned, and the shape of the last output of each module that was called, by
        name, in the order in which these calls ended; ``()`` for what is not a tensor.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes.pop(name, None)  # to the end of the order
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

        return hook

    handles = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_hook(record(name)))
        return run(), shapes
    finally:
        for handle in handles:
            handle.remove()


def choose_layer(
    network: nn.Module, shapes: dict[str, tuple[int, ...]], layer: str | None
) -> tuple[str, nn.Module]:
    """Return the name and the module of a layer, by default of the last large enough feature map.

    Args:
        network: the network.
        shapes: what its modules put out, from :func:`forward_shapes`.
        layer: a name, with or without the leading ``module.`` of a ComposerClassifier.

    Raises:
        ArgumentError: there is no such layer, it was not called, or its output is no feature map.
        ModelError: there is no feature map.
    """
    if layer is None:
        name = _last_map(shapes)
        return name, network.get_submodule(name)
    modules = dict(walk(network))
    name = layer if layer in modules or not isinstance(layer, str) else unwrapped(layer)
    if not name or name not in modules:
        raise ArgumentError(unknown("layer", layer, (name for name in modules if name)))
    module = modules[name]
    # Of a module with several names, the shape is known by its first.
    shape = next((shapes[n] for n in shapes if modules.get(n) is module), None)
    if shape is None:
        raise ArgumentError(
            f"the layer {name!r} is not called in the network's forward (a ReLU or a container may "
            f"be bypassed). The last that outputs a feature map: {_last_map(shapes)!r}"
        )
    if not _is_map(shape):
        found = shape or "something other than a tensor"
        raise ArgumentError(
            f"the layer {name!r} outputs {found}, not a feature map (N, C, H, W) of more than one "
            f"position. The last that does: {_last_map(shapes)!r}"
        )
    return name, module


def _is_map(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[2] * shape[3] > 1


def _last_map(shapes: dict[str, tuple[int, ...]]) -> str:
    maps = {name: shape for name, shape in shapes.items() if name and _is_map(shape)}
    if not maps:
        raise ModelError(
            "no module of the network outputs a feature map (N, C, H, W) of more than one "
            "position, which a heat map needs"
        )
    large = [name for name, shape in maps.items() if min(shape[2:]) >= _ENOUGH]
    if large:
        return large[-1]
    most = max(shape[2] * shape[3] for shape in maps.values())
    return [name for name, shape in maps.items() if shape[2] * shape[3] == most][-1]
