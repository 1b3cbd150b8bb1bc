"""Measure what ``${...}`` in a config comes to before any of it is filled in.

Ten lines that each name the one before twice make a thousand copies of the first, forty a trillion.
"""

import re
from collections.abc import Iterator
from typing import Any

from composer_attn.runs.config.config_errors import Mistake

# Characters and values of a config, all of its interpolations written out.
LARGEST = 1_000_000
_START = re.compile(r"\$\{")
_VARIABLE = r"\$\{oc\.env:[^${}]*\}"
_DECODED = rf"\$\{{oc\.decode:{_VARIABLE}\}}"
_FORMS = re.compile(rf"{_DECODED}|{_VARIABLE}|\$\{{(?P<key>[\w.\[\]-]+)\}}")

Path = tuple[str, ...]


def check_interpolations(content: dict) -> list[Mistake]:
    """List the interpolations that are of another form than documented, or that swell.

    Args:
        content: the config as plain data, nothing filled in.

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
        return ["holds too long a chain of ${...} that lead to one another"]
    return [f"comes to more than {LARGEST:,} characters, every ${{...}} filled in"]


def _texts(node: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield every string, keys aside, and where it stands."""
    if isinstance(node, str):
        yield path, node
    for key, value in _items(node):
        yield from _texts(value, (*path, key))


def _items(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [(str(key), value) for key, value in node.items()]
    return [(str(i), value) for i, value in enumerate(node)] if isinstance(node, list) else []


def _indexed(node: Any) -> Any:
    """Turn lists into mappings from their indices, at every depth."""
    items = _items(node)
    return {key: _indexed(value) for key, value in items} if items else node


class _Sizes:
    """What each node comes to, each counted once, without filling anything in."""

    def __init__(self, content: dict):
        self._content = _indexed(content)
        self._known: dict[Path, int] = {}

    def of(self, path: Path) -> int:
        """Return the size of a node."""
        if path not in self._known:
            # What leads back to itself has no size: OmegaConf makes an error of it.
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
        """Return the node that a key at ``path`` names, through the interpolations on its way."""
        dots = len(key) - len(key.lstrip("."))
        parts = [part for part in re.split(r"[.\[\]]+", key) if part]
        # One dot stands for the mapping that holds the interpolation.
        wanted = (*(path[: len(path) - dots] if dots else ()), *parts)
        for end in range(len(wanted)):
            above = self._at(wanted[:end])
            whole = _FORMS.fullmatch(above) if isinstance(above, str) else None
            if whole and whole["key"]:
                target = self._named(whole["key"], wanted[:end])
                return self._named(".".join((*target, *wanted[end:])), ())
        return wanted
