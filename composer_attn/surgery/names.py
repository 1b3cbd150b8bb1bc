"""Module names and the glob patterns that select them."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from composer_attn.errors import ArgumentError, PatternError


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every (name, module) pair of a model, shared modules once for each of their names.

    Unlike ``named_modules(remove_duplicate=False)`` it ends on models that contain themselves.
    """

    def visit(name: str, module: nn.Module, path: tuple[nn.Module, ...]):
        yield name, module
        # Not named_children(), which skips a child's second name.
        for child_name, child in module._modules.items():
            if child is not None and all(child is not above for above in (*path, module)):
                full_name = f"{name}.{child_name}" if name else child_name
                yield from visit(full_name, child, (*path, module))

    yield from visit("", model, ())


def unwrapped(name: str) -> str:
    """Strip a leading ``module.``, the prefix inside wrappers such as ComposerClassifier."""
    return name.removeprefix("module.")


def as_patterns(argument: str, patterns: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return one or several patterns as a tuple, and ``None`` as ``None``.

    Raises:
        ArgumentError: one of them is not a string.
    """
    if patterns is None:
        return None
    found: tuple[Any, ...]
    try:
        found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    except TypeError:  # not iterable, or only nominally so, like a zero-dimensional tensor
        found = (patterns,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise ArgumentError(
            f"{argument} must be a glob pattern of module names, or several of them; "
            f"got {patterns!r}"
        )
    return found


def matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether any of a module's names matches any of the patterns."""
    bare = [unwrapped(name) for name in names]
    return any(fnmatchcase(name, unwrapped(p)) for p in patterns for name in bare)


def check_patterns(argument: str, patterns: Iterable[str] | None, names: list[str]) -> None:
    """Check that every pattern matches at least one candidate's name.

    Raises:
        PatternError: one or more do not; the message lists similar names.
    """
    lost = [p for p in patterns or () if not matches(names, [p])]
    if not lost:
        return
    bare = [unwrapped(name) for name in names]
    lines = [f"{argument} pattern {p!r} matches none of {len(bare)} candidates" for p in lost]
    for i, pattern in enumerate(lost):
        near = [n for n in bare if n.startswith(unwrapped(pattern).rstrip("*."))][:3]
        near = near or get_close_matches(unwrapped(pattern), bare, n=3, cutoff=0.3) or bare[:3]
        lines[i] += f"; near names: {', '.join(near)}" if near else ""
    raise PatternError("\n".join(lines))
