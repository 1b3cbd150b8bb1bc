"""The arguments of the algorithms as plain values, which Composer writes out and evaluates."""

import ast
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from composer_attn.attention.registry import Attention, find_attention, name_of
from composer_attn.attention.signatures import own_parameters
from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError


def registered_name(attention: Attention) -> str:
    """Return the name of an attention, which is all that a checkpoint holds of it.

    Raises:
        ArgumentError: it is not registered, or there is none of that name.
    """
    found = find_attention(attention)
    name = name_of(attention)
    if name is None:
        raise ArgumentError(
            "a checkpoint can name registered attentions alone: register_attention(name, "
            f"{getattr(found, '__name__', found)}) first"
        )
    return name


def own_defaults(name: str) -> dict[str, Any]:
    """Return the default arguments of an attention that a checkpoint can hold."""
    parameters = own_parameters(find_attention(name)) or {}
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {name: value for name, value in defaults.items() if is_plain(value)}


def is_plain(value: object) -> bool:
    """Say whether a value comes back from its repr, in a checkpoint, as it was."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def plain(value: Any) -> Any:
    """Return numbers of other libraries as Python's own, whose repr Composer can evaluate."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if is_real(value) else value


def qualified_name(function: Any) -> str:
    """Return what to call a function in a repr; of a name, as is in checkpoints, the name."""
    if isinstance(function, str):
        return function
    # An object's own repr may hold its address, which differs from run to run.
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"
