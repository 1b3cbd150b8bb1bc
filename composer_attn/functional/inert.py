"""What training scripts keep beside weights, read as nothing: no code of its types runs."""

from collections import OrderedDict
from typing import Any


class Inert:
    """Stands for an object of a file: takes all that a pickle does to it, and keeps none of it."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Take any state."""


class InertMapping:
    """Stands for a mapping of a file, and makes what is passed over like an :class:`Inert`.

    Newer torch (2.15 is known) sets the items of a few types alone, subclasses not among them.
    """

    def __new__(cls, *arguments: Any, **named: Any) -> OrderedDict:  # type: ignore[misc]
        """Take any arguments."""
        mapping: Any = OrderedDict()
        mapping.stands_for = cls
        return mapping


def is_inert(value: object) -> bool:
    """Say whether a value of a file stands for one that was not built."""
    return isinstance(value, Inert) or getattr(value, "stands_for", None) is InertMapping


# Plain data, by the names that pickles know it by: arguments of scripts, best scores, when it was.
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

# Likewise, of which items are set.
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
"""Pairs for ``torch.serialization.safe_globals``: each name of plain data means one of the two."""
