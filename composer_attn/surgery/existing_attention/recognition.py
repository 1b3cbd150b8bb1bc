"""Find out what a module's forward does of attention, by running a copy on shapes alone."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

from torch import nn

from composer_attn.errors import first_line
from composer_attn.surgery.attend import is_attended, original_class
from composer_attn.surgery.existing_attention.recording import ChannelsLastError, Recording, record
from composer_attn.surgery.existing_attention.rescaling import Reading, shows_nothing
from composer_attn.surgery.existing_attention.structure import structure

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# More than this is a network, whose attentions are in its parts.
_MOST_MODULES = 100
# How many widths of layers are tried as the input's.
_MOST_WIDTHS = 3
# What is tried where no layer has a width; few operations run then.
_USUAL_WIDTHS = (64, 32, 128, 256, 512, 1024, 16)
_REMEMBERED = 4096
_memory: "dict[Hashable, Findings]" = {}


@dataclass(frozen=True)
class Findings:
    """What a module's forward was found to do.

    Attributes:
        rescales: it gives its input back, rescaled by what it pooled of it.
        is_scales: it gives scales that it pooled from its input.
        channels: the input's, where its layers tell; 0 where it takes any number.
        layers: names of the convolutions, not in children that rescale, that compute scales.
        mixes_positions: positions look at one another, as in self-attention.
        widths: channels of what each module in it is called on, by name.
        trouble: why nothing could be found out; empty where it could.
    """

    rescales: bool = False
    is_scales: bool = False
    channels: int = 0
    layers: tuple[str, ...] = ()
    mixes_positions: bool = False
    widths: dict[str, int] = field(default_factory=dict)
    trouble: str = ""


def findings(module: nn.Module) -> Findings:
    """Find out what a module's own forward does of attention; the module is not touched.

    What was found is remembered, by all that the forward may depend on.
    """
    if not has_own_forward(module):
        return Findings()
    if sum(1 for _ in module.modules()) > _MOST_MODULES:
        return Findings(trouble="it is too large")
    key = structure(module)
    found = _memory.pop(key, None) or _find(module)
    _memory[key] = found  # as the latest
    if len(_memory) > _REMEMBERED:
        _memory.pop(next(iter(_memory)), None)
    return found


def has_own_forward(module: nn.Module) -> bool:
    """Say whether a module computes in a way of its own: is no container or layer of torch's."""
    cls = original_class(module) if is_attended(module) else type(module)
    home = getattr(cls.forward, "__module__", None) or ""  # None: of a graph of torch.fx
    return not home.startswith("torch.nn.") or "forward" in vars(module)


def _find(module: nn.Module) -> Findings:
    best = Findings(trouble="it takes no feature map alone")
    widths = _widths(module)
    for dimensions in _dimensions(module):
        try:
            found = _find_by_width(module, widths, dimensions)
        except ChannelsLastError as error:
            return Findings(trouble=str(error))
        if found.rescales or found.is_scales or found.layers:
            return found
        best = found if best.trouble else best
    return best


def _find_by_width(module: nn.Module, widths: list[int], dimensions: int) -> Findings:
    trouble = ""
    for channels, trial in product(widths, (0, 1)):
        try:
            recording = record(module, channels, dimensions, trial, enough=shows_nothing)
        except ChannelsLastError:
            raise
        except Exception as error:  # whatever a forward raises
            trouble = trouble or first_line(error)
            continue
        found = _read(recording)
        if found.rescales:
            free = _runs(module, 2 * channels, dimensions, trial)
            found = replace(found, channels=0 if free else channels)
        return found
    return Findings(trouble=trouble)


def _read(recording: Recording) -> Findings:
    reading = Reading(recording)
    return Findings(
        rescales=reading.rescales,
        is_scales=reading.is_scales,
        layers=reading.layers,
        mixes_positions=reading.mixes_positions,
        widths=recording.widths,
    )


def _runs(module: nn.Module, channels: int, dimensions: int, trial: int) -> bool:
    try:
        record(module, channels, dimensions, trial)
    except Exception:  # whatever a forward raises
        return False
    return True


def _widths(module: nn.Module) -> list[int]:
    """List what the channels of the input may be, the likeliest first."""

    def widths() -> Iterator[int]:
        for part in module.modules():
            if isinstance(part, _CONVOLUTIONS):
                yield part.in_channels
            elif isinstance(part, nn.Linear):
                yield part.in_features
            else:
                yield getattr(part, "num_features", 0)

    # One or two: a kernel that slides over channels or positions, as in ECA and spatial attention.
    found = list(dict.fromkeys(w for w in widths() if isinstance(w, int) and w > 2))
    if found:
        return found[:_MOST_WIDTHS]
    shapes = (side for parameter in module.parameters() for side in parameter.shape if side > 2)
    return list(dict.fromkeys((*shapes, *_USUAL_WIDTHS)))


def _dimensions(module: nn.Module) -> tuple[int, ...]:
    """List how many spatial dimensions the input may have, the likeliest first."""
    kinds = {cls.__name__[-2:] for part in module.modules() for cls in type(part).__mro__}
    if "2d" in kinds:
        return (2,)
    if "3d" in kinds:
        return (3,)
    # A kernel over channels is one of one dimension, whatever the map has.
    return (1, 2, 3) if "1d" in kinds else (2, 1, 3)
