"""Argument checks that several floors share; each message says what would be valid."""

from numbers import Integral, Real

from composer_attn.errors import ArgumentError


def whole_number(argument: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``minimum``.

    Raises:
        ArgumentError: it is something else (``True`` and ``3.0`` are something else).
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ArgumentError(f"{argument} must be a whole number >= {minimum}; got {value!r}")
    return int(value)


def is_real(value: object) -> bool:
    """Say whether ``value`` is a number that is neither a bool nor nan nor infinite."""
    return (
        isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) < float("inf")
    )
