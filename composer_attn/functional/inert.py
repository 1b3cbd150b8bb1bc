"""Placeholders for objects stored beside weights, so that no code of their types runs."""

from collections import OrderedDict
from typing import Any


class Inert:
    """Placeholder for a pickled object: accepts all unpickling operations and stores nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Accept any state."""


class InertMapping:
    """Placeholder for a mapping of a file, used like :class:`Inert`.

    Recent torch versions (2.15) set items only of exact types, not of their subclasses.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> OrderedDict:  # type: ignore[misc]
        """Accept any arguments."""
        mapping: Any = OrderedDict()
        mapping.stands_for = cls
        return mapping


def is_inert(value: object) -> bool:
    """Return whether a value of a file is a placeholder."""
    return isinstance(value, Inert) or getattr(value, "stands_for", None) is InertMapping


# Types of plain data, by qualified name: script arguments, best scores, dates.
_DATA = {
    "argparse": ("Namespace",),
    "builtins": ("bool", "dict", "float", "frozenset", "int", "list", "range", "str", "tuple"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
}
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_DATA |= {"pathlib": _PATHS, "pathlib._local": _PATHS}

# Mappings, whose items are set.
_MAPPINGS = {
    "addict.addict": ("Dict",),
    "collections": ("defaultdict",),
    "easydict": ("EasyDict",),
    "yacs.config": ("CfgNode",),
}

INERT = tuple(
    (stand_in, f"{module}.{name}")
    for stand_in, table in ((Inert, _DATA), (InertMapping, _MAPPINGS))
    for module, names in table.items()
    for name in names
)
"""Pairs for ``torch.serialization.safe_globals``: each such type maps to one of the two."""
