"""The points where a network has attention of its own, which can give way."""

from collections.abc import Iterator

from torch import nn

from composer_attn.errors import PlacementError
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.foreign import is_attention, is_rescaling, nothing_to_replace
from composer_attn.surgery.names import walk
from composer_attn.surgery.points import ATTENDED_ALREADY, CONVOLUTIONS, Point, channels_out
from composer_attn.surgery.slots import Kept, Replacement, is_replacement, split_name


def find_own_attentions(model: nn.Module) -> list[Point]:
    """List the attentions that a network came with, or those that stand in their place.

    Raises:
        PlacementError: there is none that could give way.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in _outermost(model):
        names.setdefault(module, []).append(name)
    points = [_point(model, module, tuple(known)) for module, known in names.items()]
    if all(point.obstacle == _FIXED for point in points):
        raise PlacementError(nothing_to_replace(model))
    return points


_FIXED = "its block needs it: it is more than a rescaling of channels"


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk over attentions, but not into ours, nor into those that can be replaced as a whole."""
    above: list[str] = []
    for name, module in walk(model):
        if any(name.startswith(prefix) and name for prefix in above):
            continue
        prefix = f"{name}." if name else ""
        if is_replacement(module) or is_rescaling(module):
            above.append(prefix)
        elif is_attended(module):
            above.append(f"{prefix}{CHILD}")
        if is_replacement(module) or is_attention(module):
            yield name, module


def _point(model: nn.Module, module: nn.Module, names: tuple[str, ...]) -> Point:
    name = names[0]
    if is_replacement(module):
        channels = _channels(model, module.kept.module, name)
        return Point(name, names, module, "output", channels, name, obstacle=ATTENDED_ALREADY)
    has_weights = any(True for _ in module.parameters())
    channels = _channels(model, module, name)
    return Point(
        name,
        names,
        Replacement(Kept(module)),
        "output",
        channels,
        owner=name if has_weights else split_name(name)[0],
        obstacle=_obstacle(module, name, channels),
        slots=tuple(split_name(n) for n in names),
    )


def _obstacle(module: nn.Module, name: str, channels: int) -> str:
    if not is_rescaling(module):
        return _FIXED
    if not name:
        return "it is the whole model"
    return "" if channels else "how many channels it has cannot be told"


def _channels(model: nn.Module, module: nn.Module, name: str) -> int:
    """Tell how many channels an attention rescales: what its first layer takes in."""
    layers = (m for m in module.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS)))
    first = next(layers, None)
    width = first.in_features if isinstance(first, nn.Linear) else getattr(first, "in_channels", 0)
    # One or two: a kernel that slides over channels or positions, as in ECA.
    if width > 2:
        return width
    # Else from what comes before it.
    parent, own = split_name(name)
    before = []
    for child, sibling in model.get_submodule(parent)._modules.items():
        if child == own:
            break
        before.append(sibling)
    widths = (channels_out(sibling) for sibling in reversed(before) if sibling is not None)
    return next(filter(None, widths), 0)
