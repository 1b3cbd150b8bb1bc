"""Arguments of the algorithms as plain values, which Composer stores as text and evaluates."""

import ast
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from composer_attn.attention.registry import Attention, find_attention, name_of
from composer_attn.attention.signatures import own_parameters
from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError


def registered_name(attention: Attention) -> str:
    """Return the registered name of an attention, by which a checkpoint identifies it.

    Raises:
        ArgumentError: it is not registered, or the name is unknown.
    """
    found = find_attention(attention)
    name = name_of(attention)
    if name is None:
        raise ArgumentError(
            "a checkpoint can only name registered attentions: call register_attention(name, "
            f"{getattr(found, '__name__', found)}) first"
        )
    return name


def own_defaults(name: str) -> dict[str, Any]:
    """Return those default arguments of an attention that a checkpoint can store."""
    parameters = own_parameters(find_attention(name)) or {}
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {name: value for name, value in defaults.items() if is_plain(value)}


def is_plain(value: object) -> bool:
    """Return whether a value can be restored from its repr, as stored in a checkpoint."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def plain(value: Any) -> Any:
    """Convert numbers of other libraries to Python's own, whose repr Composer can evaluate."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if is_real(value) else value


def qualified_name(function: Any) -> str:
    """Return the name of a function for a repr; a name, as from a checkpoint, is unchanged."""
    if isinstance(function, str):
        return function
    # An object's own repr may contain its address, which differs between runs.
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"
