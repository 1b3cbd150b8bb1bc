"""Shortcuts that are the input itself: a module of ours stands in for it while it is attended."""

from torch import nn


class Shortcut(nn.Identity):
    """Stands where a block has None for a shortcut, so that there is something to attend."""


def is_shortcut(module: nn.Module) -> bool:
    """Say whether a module only stands in for a shortcut."""
    return isinstance(module, Shortcut)


def split_name(name: str) -> tuple[str, str]:
    """Split a module's name into its parent's and its own."""
    parent, _, child = name.rpartition(".")
    return parent, child


def occupy(model: nn.Module, slot: tuple[str, str], module: nn.Module) -> None:
    """Put a module where a block has None."""
    block = model.get_submodule(slot[0])
    # nn.Module keeps None as a plain attribute, which would hide the module.
    vars(block).pop(slot[1], None)
    block._modules[slot[1]] = module


def vacate(model: nn.Module, slot: tuple[str, str]) -> None:
    """Undo :func:`occupy`."""
    block = model.get_submodule(slot[0])
    block._modules.pop(slot[1], None)
    vars(block)[slot[1]] = None
