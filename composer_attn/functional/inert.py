"""Placeholders for objects stored beside weights, so that no code of their types runs."""

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

    def __setitem__(self, key: Any, value: Any) -> None:
        """Accept any item, as set on subclasses of dict."""


# Types of plain data, by qualified name: script arguments, best scores, dates.
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
"""Pairs for ``torch.serialization.safe_globals`` that map each such type to :class:`Inert`."""
