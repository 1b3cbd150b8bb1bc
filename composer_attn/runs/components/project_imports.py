"""Import the modules of a project that register its attentions."""

import importlib
import os
import sys
from collections.abc import Iterable

from composer_attn.errors import ArgumentError


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, from the working directory as ``python -m`` does, or as installed.

    Raises:
        ArgumentError: there is no such module, or importing it fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of the user's own raises what it likes
            raise ArgumentError(
                f"--import {name}: {type(error).__name__}: {error}; it takes the name of a module, "
                f"like my_attentions for my_attentions.py in {os.getcwd()}"
            ) from error
