"""Shortcuts that are the input itself: a module of ours stands in for it while it is attended."""

from torch import nn


class Shortcut(nn.Identity):
    """Stands where a block has None for a shortcut, so that there is something to attend.

    Attributes:
        displaced: where the None was: among the block's ``children`` or its plain ``attributes``;
            empty where there was none.
    """

    displaced: str = ""


def is_shortcut(module: nn.Module | None) -> bool:
    """Say whether a module only stands in for a shortcut."""
    return isinstance(module, Shortcut)


def split_name(name: str) -> tuple[str, str]:
    """Split a module's name into its parent's and its own."""
    parent, _, child = name.rpartition(".")
    return parent, child


def occupy(model: nn.Module, slot: tuple[str, str], module: nn.Module) -> None:
    """Put a module where a block has None."""
    block = model.get_submodule(slot[0])
    # nn.Module keeps None as a plain attribute, which would hide the module, or as a child.
    places = {"attributes": vars(block), "children": block._modules}
    module.displaced = next((place for place, held in places.items() if slot[1] in held), "")
    block._modules[slot[1]] = module
    vars(block).pop(slot[1], None)


def vacate(model: nn.Module, slot: tuple[str, str]) -> None:
    """Undo :func:`occupy`; harmless where it was not done."""
    block = model.get_submodule(slot[0])
    module = block._modules.get(slot[1])
    if not is_shortcut(module):
        return
    if module.displaced == "children":
        block._modules[slot[1]] = None
        return
    del block._modules[slot[1]]
    if module.displaced == "attributes":
        vars(block)[slot[1]] = None
