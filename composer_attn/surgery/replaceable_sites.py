"""The sites where a network has built-in attention that can be replaced."""

from collections.abc import Iterator

from torch import nn

from composer_attn.errors import PlacementError
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.channel_counts import CONVOLUTIONS, channels_out
from composer_attn.surgery.existing_attention.known import (
    existing,
    is_attention,
    is_rescaling,
    nothing_to_replace,
)
from composer_attn.surgery.existing_attention.recognition import findings
from composer_attn.surgery.names import walk
from composer_attn.surgery.sites import ATTENDED_ALREADY, CandidateSite
from composer_attn.surgery.stand_ins import Kept, Replacement, is_replacement, split_name


def find_own_attentions(model: nn.Module) -> list[CandidateSite]:
    """List a network's built-in attentions, and the replacements that stand in for them.

    Raises:
        PlacementError: there is none that could be replaced.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in _outermost(model):
        names.setdefault(module, []).append(name)
    candidates = [_candidate(model, module, tuple(known)) for module, known in names.items()]
    if all(candidate.obstacle.startswith((_FIXED, _UNKNOWN)) for candidate in candidates):
        raise PlacementError(nothing_to_replace(model))
    return candidates


_FIXED = "its block needs it: it is more than a rescaling of channels"
_UNKNOWN = "an attention judging by its name only, as its forward cannot be traced"
_REGISTER = "declare with register_existing_attention whether it can be replaced"


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield attentions, without descending into added ones or ones replaceable as a whole."""
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


def _candidate(model: nn.Module, module: nn.Module, names: tuple[str, ...]) -> CandidateSite:
    name = names[0]
    if is_replacement(module):
        channels = _channels(model, module.kept.module, name)
        return CandidateSite(
            name, names, module, "output", channels, name, obstacle=ATTENDED_ALREADY
        )
    has_weights = any(True for _ in module.parameters())
    channels = _channels(model, module, name)
    return CandidateSite(
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
    found = existing(module)
    if found.kind != "rescaling":
        return _FIXED if not found.doubt else f"{_UNKNOWN} ({found.doubt}); {_REGISTER}"
    if not name:
        return "it is the whole model"
    return "" if channels else "its number of channels is not known"


def _channels(model: nn.Module, module: nn.Module, name: str) -> int:
    """Return the number of channels that an attention rescales, or 0 if unknown."""
    found = existing(module)
    told = found.channels or (0 if found.traced else _taken_in(module))
    return told or _called_on(model, name) or _before(model, name)


def _taken_in(module: nn.Module) -> int:
    """Return the input channels of its first layer, or 0."""
    layers = (m for m in module.modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS)))
    first = next(layers, None)
    width = first.in_features if isinstance(first, nn.Linear) else getattr(first, "in_channels", 0)
    # A width of one or two is a kernel that slides over channels or positions, as in ECA.
    return width if width > 2 else 0


def _called_on(model: nn.Module, name: str) -> int:
    """Return the channels of the feature map that an enclosing block calls it on, or 0."""
    above, _ = split_name(name)
    while above:
        widths = findings(model.get_submodule(above)).widths
        if name.removeprefix(f"{above}.") in widths:
            return widths[name.removeprefix(f"{above}.")]
        above, _ = split_name(above)
    return findings(model).widths.get(name, 0)


def _before(model: nn.Module, name: str) -> int:
    """Return the output channels of the nearest preceding sibling, or 0."""
    parent, own = split_name(name)
    before = []
    for child, sibling in model.get_submodule(parent)._modules.items():
        if child == own:
            break
        before.append(sibling)
    widths = (channels_out(sibling) for sibling in reversed(before) if sibling is not None)
    return next(filter(None, widths), 0)
