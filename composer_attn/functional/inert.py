"""What training scripts keep beside weights, read as nothing: no code of its types runs."""

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

    def __setitem__(self, key: Any, value: Any) -> None:
        """Take any item, as of a subclass of dict."""


# Plain data, by the names that pickles know it by: arguments of scripts, best scores, when it was.
_DATA = {
    "addict.addict": ("Dict",),
    "argparse": ("Namespace",),
    "builtins": ("bool", "dict", "float", "frozenset", "int", "list", "range", "str", "tuple"),
    "collections": ("defaultdict",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "easydict": ("EasyDict",),
    "fractions": ("Fraction",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "torch.torch_version": ("TorchVersion",),
    "types": ("SimpleNamespace",),
    "uuid": ("UUID",),
    "yacs.config": ("CfgNode",),
}
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
_DATA |= {"pathlib": _PATHS, "pathlib._local": _PATHS}

INERT = tuple((Inert, f"{module}.{name}") for module, names in _DATA.items() for name in names)
"""Pairs for ``torch.serialization.safe_globals``: each name of plain data means :class:`Inert`."""
