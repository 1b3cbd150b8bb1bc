"""Attending parametrized modules: the class made by the parametrization stays outermost.

``torch.nn.utils.parametrize.remove_parametrizations`` deletes its property from the module's exact
class, and then restores the first base of that class.
"""

from torch import nn

_BEFORE = "_attn_before"


def move_upon(cls: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    """Return a copy of a parametrized module's class, on another base.

    Args:
        cls: the class made by the parametrization.
        base: the attended class that extends the base of ``cls``.
    """
    made = _copied(cls, (base,), f"Parametrized{base.__name__}", _properties(cls))
    setattr(made, _BEFORE, cls)
    return made


def is_moved(module: nn.Module) -> bool:
    """Return whether a module was parametrized when it was attended, and still is."""
    return _BEFORE in vars(type(module))


def has_more_properties(module: nn.Module) -> bool:
    """Return whether a moved module has parametrizations added after it was attended."""
    cls = type(module)
    return bool(_properties(cls) - _properties(vars(cls)[_BEFORE]))


def class_before(module: nn.Module) -> type[nn.Module]:
    """Return the class before :func:`move_upon`, without properties removed in the meantime."""
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
