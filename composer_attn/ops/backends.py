"""Which implementation of the passes runs."""

from types import ModuleType

from composer_attn.errors import ArgumentError
from composer_attn.ops import passes

BACKENDS = ("auto", "reference", "inductor", "triton")


def check_backend(name: str) -> str:
    """Return the name of a backend if it is one.

    Raises:
        ArgumentError: it is not; the message lists the names.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


def find_passes(name: str, x) -> ModuleType:
    """Find the passes that a backend runs over ``x``."""
    check_backend(name)
    return passes
