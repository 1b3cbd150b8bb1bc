"""Measure what ``${...}`` in a config comes to before any of it is filled in.

Ten lines that each name the one before twice make a thousand copies of the first, forty a trillion.
"""

import re
from collections.abc import Iterator
from typing import Any

from composer_attn.runs.mistakes import Mistake

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
        if _START.search(_FORMS.sub("", text))
    ]
    if not mistakes and _Sizes(content).of(()) > LARGEST:
        message = f"comes to more than {LARGEST:,} characters, every ${{...}} filled in"
        mistakes.append(Mistake("", message))
    return mistakes


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


class _Sizes:
    """Upper bounds of what each node comes to, each computed once."""

    def __init__(self, content: dict):
        self._content = content
        self._known: dict[Path, int] = {}

    def of(self, path: Path) -> int:
        """Return the size of a node; of what it is itself a part of, OmegaConf makes an error."""
        if path not in self._known:
            self._known[path] = 0
            node = self._at(path)
            size = 1 + sum(self.of((*path, key)) for key, _ in _items(node))
            if isinstance(node, str):
                keys = [match["key"] for match in _FORMS.finditer(node) if match["key"]]
                size += len(node) + sum(self.of(self._named(key, path)) for key in keys)
            self._known[path] = size
        return self._known[path]

    def _at(self, path: Path) -> Any:
        node: Any = self._content
        for part in path:
            node = dict(_items(node)).get(part)
        return node

    def _named(self, key: str, path: Path) -> Path:
        """Return the node that a key names, or the one above that an interpolation fills in."""
        dots = len(key) - len(key.lstrip("."))
        parts = [part for part in re.split(r"[.\[\]]+", key) if part]
        # One dot stands for the mapping that holds the interpolation.
        wanted = (*(path[: len(path) - dots] if dots else ()), *parts)
        for end in range(len(wanted) + 1):
            if isinstance(self._at(wanted[:end]), str):
                return wanted[:end]
        return wanted
