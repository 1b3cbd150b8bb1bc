"""Find the sites of a placement in a network: which modules to attend, and on which side."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from torch import nn

from composer_attn.errors import ArgumentError, PlacementError, first_line
from composer_attn.surgery.attend import is_attended
from composer_attn.surgery.block_tracing import traced_block
from composer_attn.surgery.blocks import Block, known_block
from composer_attn.surgery.channel_counts import (
    CONVOLUTIONS,
    NORMS,
    channels_in,
    channels_out,
    norm_channels,
)
from composer_attn.surgery.existing_attention.known import existing_attentions, inside
from composer_attn.surgery.names import walk
from composer_attn.surgery.stand_ins import Shortcut, Slot

ATTENDED_ALREADY = "already attended"


@dataclass(frozen=True)
class CandidateSite:
    """A candidate site for an attention.

    Attributes:
        name: the first name in the model of the module to attend.
        names: all names that patterns may match.
        module: the module to attend.
        side: which side passes through the attention: ``output``, ``input`` or ``shortcut``.
        channels: number of channels.
        owner: name of the module whose weights determine the device, dtype and parameter group of
            the new parameters.
        obstacle: why there can be no attention here; empty if there can.
        slots: (block name, child name) pairs under which the module is to be inserted, where there
            is None so far, or a built-in attention (one pair for each of its names).
    """

    name: str
    names: tuple[str, ...]
    module: nn.Module
    side: str
    channels: int
    owner: str
    obstacle: str = ""
    slots: tuple[Slot, ...] = ()


def find_candidates(model: nn.Module, placement: str) -> list[CandidateSite]:
    """List every site of a placement once, in model order.

    Raises:
        ArgumentError: there is no such placement.
        PlacementError: the placement needs residual blocks, and the network has none.
    """
    if not isinstance(placement, str) or placement not in PLACEMENTS:
        raise ArgumentError(f"placement must be one of {', '.join(PLACEMENTS)}; got {placement!r}")
    names: dict[nn.Module, list[str]] = {}
    for name, module in walk(model):
        names.setdefault(module, []).append(name)
    foreign = existing_attentions(model)
    candidates: dict[tuple[nn.Module, str], CandidateSite] = {}
    for candidate in PLACEMENTS[placement](names, placement):
        # Keyed by module, which may have further names, and listed under the first of them.
        known = tuple(dict.fromkeys((*names.get(candidate.module, ()), *candidate.names)))
        candidates.setdefault(
            (candidate.module, candidate.side), replace(candidate, name=known[0], names=known)
        )
    order = {module: i for i, module in enumerate(names)}
    places = [
        model.get_submodule(p.slots[0][0]) if p.slots else p.module for p in candidates.values()
    ]
    found = sorted(zip(places, candidates.values(), strict=True), key=lambda pair: order[pair[0]])
    return [_guarded(candidate, foreign) for _, candidate in found]


def _guarded(candidate: CandidateSite, foreign: dict[str, str]) -> CandidateSite:
    """Set the obstacle of a site that is already attended or lies inside an attention."""
    if is_attended(candidate.module):
        return replace(candidate, obstacle=ATTENDED_ALREADY)
    enclosing = next(filter(None, (inside(name, foreign) for name in candidate.names)), "")
    if enclosing:
        return replace(candidate, obstacle=enclosing)
    if not candidate.channels and not candidate.obstacle:
        return replace(candidate, obstacle="no layer defines its number of channels")
    return candidate


def _convolutions(names: dict[nn.Module, list[str]], placement: str) -> Iterator[CandidateSite]:
    for module, known in names.items():
        if isinstance(module, CONVOLUTIONS):
            yield CandidateSite(
                known[0], tuple(known), module, "output", module.out_channels, known[0]
            )


def _norms(names: dict[nn.Module, list[str]], placement: str) -> Iterator[CandidateSite]:
    """Yield the norm after each convolution: the next child of the same module."""
    for parent, known in names.items():
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for (name, conv), (next_name, norm) in pairwise([*children, ("", None)]):
            if isinstance(conv, CONVOLUTIONS):
                convs, norms = (tuple(_join(k, n) for k in known) for n in (name, next_name))
                candidate = CandidateSite(
                    convs[0], convs, conv, "output", conv.out_channels, convs[0]
                )
                if isinstance(norm, NORMS) and norm_channels(norm) == conv.out_channels:
                    yield replace(candidate, name=norms[0], names=(*norms, *convs), module=norm)
                else:
                    yield replace(candidate, obstacle="no norm follows it")


def _blocks(names: dict[nn.Module, list[str]], placement: str) -> Iterator[CandidateSite]:
    found: list[nn.Module] = []
    untraced: dict[nn.Module, str] = {}
    for module, known in list(names.items()):
        block = _block_of(module, untraced)
        if block is not None:
            found.append(module)
            yield _block_candidate(module, tuple(known), block, placement)
    if not found:
        raise PlacementError(_no_blocks(next(iter(names)), placement, untraced))
    for module, why in untraced.items():
        # A module that contains blocks is unlikely to be one itself.
        if not any(block in found for block in module.modules()):
            known, obstacle = names[module], f"not traced ({why}): if a block, use register_block"
            yield CandidateSite(
                known[0], tuple(known), module, "output", 0, known[0], obstacle=obstacle
            )


def _block_of(module: nn.Module, untraced: dict[nn.Module, str]) -> Block | None:
    known = known_block(module)
    has_convolution = any(isinstance(m, CONVOLUTIONS) for m in module.modules())
    plain = isinstance(module, (nn.Sequential, *CONVOLUTIONS)) or not module._modules
    if known is not None or plain or not has_convolution:
        return known
    try:
        return traced_block(module)
    except Exception as error:  # whatever a forward raises on symbolic inputs
        untraced[module] = first_line(error)
        return None


def _block_candidate(
    block: nn.Module, known: tuple[str, ...], parts: Block, placement: str
) -> CandidateSite:
    inputs, outputs = _block_channels(block, known, parts)
    if placement == "residual":
        return _at_child(block, known, parts.last, "output", outputs)
    if placement == "pre":
        return _at_child(block, known, parts.first, "input", inputs)
    if placement == "post":
        return CandidateSite(known[0], known, block, "output", outputs, known[0])
    if not _has_shortcut(block, parts):
        return CandidateSite(
            known[0], known, block, "shortcut", 0, known[0], obstacle="it has no shortcut"
        )
    if _shortcut(block, parts) is not None:
        return _at_child(block, known, parts.shortcut, "output", outputs)
    if parts.shortcut:
        names = (*(_join(k, parts.shortcut) for k in known), *known)
        slots = ((known[0], parts.shortcut),)
        return CandidateSite(names[0], names, Shortcut(), "output", inputs, known[0], slots=slots)
    candidate = CandidateSite(known[0], known, block, "shortcut", inputs, known[0])
    if parts.adds_last:
        return candidate
    trouble = "its shortcut has no module, and something follows the addition"
    return replace(candidate, obstacle=trouble)


def _has_shortcut(block: nn.Module, parts: Block) -> bool:
    says = getattr(block, parts.has_shortcut, True) if parts.has_shortcut else True
    return says is not None and says is not False


def _shortcut(block: nn.Module, parts: Block) -> nn.Module | None:
    return getattr(block, parts.shortcut, None) if parts.shortcut else None


def _block_channels(block: nn.Module, known: tuple[str, ...], parts: Block) -> tuple[int, int]:
    """Return the input and output channels of a block.

    If a branch starts with a split or ends in a concatenation, its layers see only some of the
    channels. The shortcut sees all of them; with an identity shortcut, input and output have the
    same number, so that the larger count is right for both.
    """
    first, last = _part(block, known, parts.first), _part(block, known, parts.last)
    # A branch may end in a module without channels, such as stochastic depth.
    inputs, outputs = channels_in(first), channels_out(last) or channels_out(first)
    shortcut = _shortcut(block, parts)
    if shortcut is not None and channels_out(shortcut):
        outputs = max(outputs, channels_out(shortcut))
        return max(inputs, channels_in(shortcut)) if parts.from_input else inputs, outputs
    if _has_shortcut(block, parts) and parts.from_input:
        return (max(inputs, outputs),) * 2
    return inputs, outputs


def _part(block: nn.Module, known: tuple[str, ...], name: str) -> nn.Module:
    try:
        return block.get_submodule(name)
    except AttributeError as error:
        kind = type(block)
        raise PlacementError(
            f"{known[0] or 'the model'}: {kind.__qualname__} is described as a block with child "
            f"{name!r}, which it lacks; its children: {', '.join(block._modules)}. Describe "
            "it with composer_attn.register_block(cls, first=, last=, ...)"
        ) from error


def _at_child(
    block: nn.Module, known: tuple[str, ...], child: str, side: str, channels: int
) -> CandidateSite:
    path, module = _within_sequence(child, block.get_submodule(child), side)
    names = (*(_join(k, path) for k in known), *known)
    candidate = CandidateSite(names[0], names, module, side, channels, known[0])
    if isinstance(module, nn.Sequential):
        return replace(candidate, obstacle="an empty Sequential, which has nothing to attend")
    return candidate


def _within_sequence(path: str, module: nn.Module, side: str) -> tuple[str, nn.Module]:
    """Descend to the first or last child of a Sequential, which would run an attention child."""
    # Any module that uses the forward of Sequential has a length, and calls all of its children.
    while type(module).forward is nn.Sequential.forward and len(cast(nn.Sequential, module)):
        child = list(module._modules)[-1 if side == "output" else 0]
        path, module = f"{path}.{child}", cast(nn.Module, module._modules[child])
    return path, module


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _no_blocks(model: nn.Module, placement: str, untraced: dict[nn.Module, str]) -> str:
    message = (
        f"placement={placement!r} needs residual blocks, and {type(model).__name__} has none that "
        "is known or could be traced; placement='conv' and 'norm' need no blocks"
    )
    if untraced:
        kinds = {f"{type(m).__module__}.{type(m).__qualname__}": why for m, why in untraced.items()}
        listed = "\n".join(f"  {kind}: {why}" for kind, why in list(kinds.items())[:5])
        message += (
            f". Not traced; if these are residual blocks, describe them with "
            f"composer_attn.register_block(cls, first=, last=, ...):\n{listed}"
        )
    return message


PLACEMENTS: dict[str, Callable[[dict, str], Iterator[CandidateSite]]] = {
    "conv": _convolutions,
    "norm": _norms,
    "residual": _blocks,
    "pre": _blocks,
    "post": _blocks,
    "identity": _blocks,
}
