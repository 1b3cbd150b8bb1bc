"""Modules of ours that stand where a block has none, or had an attention of its own."""

from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from torch import nn


class Shortcut(nn.Identity):
    """Stands where a block has None for a shortcut, so that there is something to attend.

    Attributes:
        displaced: where the None was: among the block's ``children`` or its plain ``attributes``;
            empty where there was none.
    """

    displaced: str = ""


class Place(NamedTuple):
    """Where a parameter was before it left an optimizer: by numbers and names, which can be kept.

    Attributes:
        parameter: its name in its module.
        optimizer: index among the optimizers passed.
        group: index among that optimizer's groups.
        position: index in the group, when it left.
        known_as: what the group's ``param_names`` called it, if it has any.
    """

    parameter: str
    optimizer: int
    group: int
    position: int
    known_as: str | None


@dataclass
class Kept:
    """What a replacement stands for; no module of its own, so that nothing finds parameters in it.

    Attributes:
        module: the attention that the network came with.
        places: where its parameters were in the optimizers.
    """

    module: nn.Module
    places: tuple[Place, ...] = ()


class Replacement(nn.Identity):
    """Stands where a network had an attention of its own, so that ours is attended there."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept


Slot = tuple[str, str]


def is_shortcut(module: nn.Module | None) -> TypeGuard[Shortcut]:
    """Say whether a module only stands in for a shortcut."""
    return isinstance(module, Shortcut)


def is_replacement(module: nn.Module | None) -> TypeGuard[Replacement]:
    """Say whether a module stands where a network had an attention of its own."""
    return isinstance(module, Replacement)


def split_name(name: str) -> Slot:
    """Split a module's name into its parent's and its own."""
    parent, _, child = name.rpartition(".")
    return parent, child


def occupy(model: nn.Module, slot: Slot, module: nn.Module) -> None:
    """Put a module where a block has None, or has an attention of its own."""
    block = model.get_submodule(slot[0])
    if is_shortcut(module):
        # nn.Module keeps None as a plain attribute, which would hide the module, or as a child.
        places = {"attributes": vars(block), "children": block._modules}
        module.displaced = next((place for place, held in places.items() if slot[1] in held), "")
        vars(block).pop(slot[1], None)
    block._modules[slot[1]] = module


def vacate(model: nn.Module, slot: Slot) -> None:
    """Undo :func:`occupy`; harmless where it was not done."""
    block = model.get_submodule(slot[0])
    module = block._modules.get(slot[1])
    if is_replacement(module):
        block._modules[slot[1]] = module.kept.module
    elif is_shortcut(module) and module.displaced == "children":
        block._modules[slot[1]] = None
    elif is_shortcut(module):
        del block._modules[slot[1]]
        if module.displaced == "attributes":
            vars(block)[slot[1]] = None
