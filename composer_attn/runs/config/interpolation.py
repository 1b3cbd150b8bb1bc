"""Measure the size of a config with all ``${...}`` expanded, before expanding any of them.

Ten lines that each refer to the previous one twice expand to a thousand copies of the first, and
forty lines to a trillion.
"""

import re
from collections.abc import Iterator
from typing import Any

from composer_attn.runs.config.config_errors import Mistake

# Limit of characters plus values of a config with all interpolations expanded.
LARGEST = 1_000_000
_START = re.compile(r"\$\{")
_VARIABLE = r"\$\{oc\.env:[^${}]*\}"
_DECODED = rf"\$\{{oc\.decode:{_VARIABLE}\}}"
_FORMS = re.compile(rf"{_DECODED}|{_VARIABLE}|\$\{{(?P<key>[\w.\[\]-]+)\}}")

Path = tuple[str, ...]


def check_interpolations(content: dict) -> list[Mistake]:
    """List the interpolations that have an undocumented form, or that expand to too much.

    Args:
        content: the config as plain data, with nothing expanded.

    Example:
        >>> check_interpolations({"lr": "${optimizer.lr}", "optimizer": {"lr": 0.1}})
        []
        >>> print(check_interpolations({"model": "${own:1}"})[0].message)
        '${own:1}': only ${key}, ${oc.env:NAME} and ${oc.decode:${oc.env:NAME}} can be filled in
    """
    forms = "only ${key}, ${oc.env:NAME} and ${oc.decode:${oc.env:NAME}} can be filled in"
    mistakes = [
        Mistake(".".join(path), f"{text!r}: {forms}")
        for path, text in _texts(content)
        if _START.search(_FORMS.sub(" ", text))
    ]
    return mistakes or [Mistake("", message) for message in _too_much(content)]


def _too_much(content: dict) -> list[str]:
    try:
        if _Sizes(content).of(()) <= LARGEST:
            return []
    except RecursionError:
        return ["holds too long a chain of ${...} that refer to one another"]
    return [f"is longer than {LARGEST:,} characters once every ${{...}} is filled in"]


def _texts(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every string value with its path."""
    if isinstance(node, str):
        yield path, node
    for key, value in _items(node):
        yield from _texts(value, (*path, key))


def _items(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [(str(key), value) for key, value in node.items()]
    return [(str(i), value) for i, value in enumerate(node)] if isinstance(node, list) else []


def _indexed(node: Any) -> Any:
    """Convert lists to mappings from their indices, recursively."""
    items = _items(node)
    return {key: _indexed(value) for key, value in items} if items else node


class _Sizes:
    """Expanded sizes of nodes, computed once for each, without expanding anything."""

    def __init__(self, content: dict):
        self._content = _indexed(content)
        self._known: dict[Path, int] = {}

    def of(self, path: Path) -> int:
        """Return the expanded size of a node."""
        if path not in self._known:
            # 0 for circular references, which are an error in OmegaConf.
            self._known[path] = 0
            node = self._at(path)
            size = 1
            if isinstance(node, dict):
                size += sum(self.of((*path, key)) for key in node)
            elif isinstance(node, str):
                keys = [match["key"] for match in _FORMS.finditer(node) if match["key"]]
                size += len(node) + sum(self.of(self._named(key, path)) for key in keys)
            self._known[path] = size
        return self._known[path]

    def _at(self, path: Path) -> Any:
        node: Any = self._content
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _named(self, key: str, path: Path) -> Path:
        """Return the path of the node that a key at ``path`` names, following interpolations."""
        dots = len(key) - len(key.lstrip("."))
        parts = [part for part in re.split(r"[.\[\]]+", key) if part]
        # A single dot refers to the mapping that contains the interpolation.
        wanted = (*(path[: len(path) - dots] if dots else ()), *parts)
        for end in range(len(wanted)):
            above = self._at(wanted[:end])
            whole = _FORMS.fullmatch(above) if isinstance(above, str) else None
            if whole and whole["key"]:
                target = self._named(whole["key"], wanted[:end])
                return self._named(".".join((*target, *wanted[end:])), ())
        return wanted
