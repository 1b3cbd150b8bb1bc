"""Modules that stand in for a missing shortcut or for a replaced built-in attention."""

from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from torch import nn


class Shortcut(nn.Identity):
    """Identity in the place of a shortcut that is None, so that there is a module to attend.

    Attributes:
        displaced: where the None was stored: in the block's ``children`` or its plain
            ``attributes``; empty if there was none.
    """

    displaced: str = ""


class Place(NamedTuple):
    """Position of a parameter that was removed from an optimizer, by indices and names only.

    Attributes:
        parameter: its name in its module.
        optimizer: index among the optimizers passed.
        group: index among that optimizer's groups.
        position: index in the group when it was removed.
        known_as: its entry in the group's ``param_names``, if there are any.
    """

    parameter: str
    optimizer: int
    group: int
    position: int
    known_as: str | None


@dataclass
class Kept:
    """What a replacement stands in for; not a module, so that its parameters are not found.

    Attributes:
        module: the built-in attention.
        places: the former positions of its parameters in the optimizers.
    """

    module: nn.Module
    places: tuple[Place, ...] = ()


class Replacement(nn.Identity):
    """Identity in the place of a built-in attention, to be attended instead."""

    def __init__(self, kept: Kept):
        super().__init__()
        self.kept = kept


Slot = tuple[str, str]


def is_shortcut(module: nn.Module | None) -> TypeGuard[Shortcut]:
    """Return whether a module stands in for a missing shortcut."""
    return isinstance(module, Shortcut)


def is_replacement(module: nn.Module | None) -> TypeGuard[Replacement]:
    """Return whether a module stands in for a replaced built-in attention."""
    return isinstance(module, Replacement)


def split_name(name: str) -> Slot:
    """Split a module's full name into its parent's name and its own."""
    parent, _, child = name.rpartition(".")
    return parent, child


def occupy(model: nn.Module, slot: Slot, module: nn.Module) -> None:
    """Insert a stand-in in the place of None or of a built-in attention."""
    block = model.get_submodule(slot[0])
    if is_shortcut(module):
        # nn.Module stores None as a plain attribute, which would shadow the module, or as a child.
        places = {"attributes": vars(block), "children": block._modules}
        module.displaced = next((place for place, held in places.items() if slot[1] in held), "")
        vars(block).pop(slot[1], None)
    block._modules[slot[1]] = module


def vacate(model: nn.Module, slot: Slot) -> None:
    """Undo :func:`occupy`; safe to call if it was not done."""
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
