"""Argument checks shared by several layers; each message states what would be valid."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite
from numbers import Integral, Real

from composer_attn.errors import ArgumentError

# More channels or weights than any attention has; building a larger one would exhaust memory.
MOST = 2**20


def whole_number(argument: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """Return ``value`` as an int if it is a whole number from ``minimum`` to ``maximum``.

    Raises:
        ArgumentError: it is not (neither ``True`` nor ``3.0`` is accepted).
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < minimum:
        raise ArgumentError(f"{argument} must be a whole number >= {minimum}; got {value!r}")
    if maximum is not None and int(value) > maximum:
        raise ArgumentError(f"{argument} must be a whole number <= {maximum}; got {value!r}")
    return int(value)


def is_real(value: object) -> bool:
    """Return whether ``value`` is a finite real number, and not a bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def unknown(what: str, name: object, valid: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest and all valid ones."""
    names = sorted(valid)
    near = [valid for valid in names if valid.startswith(f"{name}_")]
    near = near or get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return f"unknown {what} {name!r}{hint} Valid: {shown}"
