"""Attended modules that are parametrized: the parametrization's class stays on top.

``torch.nn.utils.parametrize.remove_parametrizations`` takes its property from a module's very
class, and then goes back to that class's first base.
"""

from torch import nn

_BEFORE = "_attn_before"


def move_upon(cls: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a parametrized module upon another base.

    Args:
        cls: the class that a parametrization made.
        base: the attended class that extends what ``cls`` extends.
    """
    made = _copied(cls, (base,), f"Parametrized{base.__name__}", _properties(cls))
    setattr(made, _BEFORE, cls)
    return made


def is_moved(module: nn.Module) -> bool:
    """Say whether a module was parametrized when it was attended, and still is."""
    return _BEFORE in vars(type(module))


def has_more_properties(module: nn.Module) -> bool:
    """Say whether more of a moved module is parametrized than there was when it was attended."""
    cls = type(module)
    return bool(_properties(cls) - _properties(vars(cls)[_BEFORE]))


def class_before(module: nn.Module) -> type[nn.Module]:
    """Return the class of before :func:`move_upon`, less what was removed from it meanwhile."""
    cls = type(module)
    before, kept = vars(cls)[_BEFORE], _properties(cls)
    if kept == _properties(before):
        return before
    return _copied(before, before.__bases__, before.__name__, kept)


def _copied(cls: type, bases: tuple[type, ...], name: str, properties: set[str]) -> type[nn.Module]:
    left_out = {"__dict__", "__weakref__"} | (_properties(cls) - properties)
    return type(name, bases, {n: v for n, v in vars(cls).items() if n not in left_out})


def _properties(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if isinstance(value, property)}
