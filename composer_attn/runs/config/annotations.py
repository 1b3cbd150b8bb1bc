"""Whether a value from YAML fits the type that an argument is annotated with."""

from collections.abc import Callable
from functools import partial
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_SCALARS = (bool, int, float, str)
_CONTAINERS = (list, tuple, dict, set, object)


def annotations_of(build: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's or class's arguments, as far as they can be looked up."""
    while isinstance(build, partial):
        build = build.func
    try:
        return get_type_hints(_called(build))
    except (NameError, TypeError):  # names that the module imports for type checkers alone
        return {}


def _called(build: Any) -> Any:
    """Return what a call of a function or class calls: of a class, whichever __init__ it has."""
    is_class = isinstance(build, type)
    return build.__init__ if is_class else build


def misfit(value: Any, annotation: Any) -> str:
    """Say which types an annotation allows, if the value is certainly of none; else ``""``.

    Certain are only plain values (and ``None``) where a plain value is asked for. What YAML cannot
    hold, like the tensor in ``float | Tensor``, is not offered.
    """
    union = get_origin(annotation) in (Union, UnionType)
    members = get_args(annotation) if union else (annotation,)
    if not all(_is_plain(member) for member in members):
        return ""
    allowed = [member for member in members if member in _SCALARS]
    if not allowed or type(value) in members or (type(value) is int and float in members):
        return ""
    return " or ".join([t.__name__ for t in allowed] + ["null"] * (NoneType in members))


def _is_plain(member: Any) -> bool:
    """Say whether a member of a union is a class, and none that holds other values."""
    return isinstance(member, type) and get_origin(member) is None and member not in _CONTAINERS
