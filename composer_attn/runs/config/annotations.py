"""Check values from YAML against the type annotations of arguments."""

from collections.abc import Callable
from functools import partial
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_SCALARS = (bool, int, float, str)
_CONTAINERS = (list, tuple, dict, set, object)


def annotations_of(build: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotated types of a callable's arguments; ``{}`` if they cannot be resolved."""
    while isinstance(build, partial):
        build = build.func
    try:
        return get_type_hints(_called(build))
    except (NameError, TypeError):  # names imported only under TYPE_CHECKING
        return {}


def _called(build: Any) -> Any:
    """Return the function that a call runs: for a class, its ``__init__``."""
    is_class = isinstance(build, type)
    return build.__init__ if is_class else build


def misfit(value: Any, annotation: Any) -> str:
    """Return the types that an annotation allows if the value certainly has none; else ``""``.

    This is certain only for plain values (and ``None``) where a plain value is expected. Types that
    YAML cannot express, such as the tensor in ``float | Tensor``, are not listed.
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
    """Return whether a member of a union is a class, and not a container."""
    return isinstance(member, type) and get_origin(member) is None and member not in _CONTAINERS
