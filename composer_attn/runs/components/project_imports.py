"""Import a project's modules that register attentions."""

import importlib
import os
import sys
from collections.abc import Iterable

from composer_attn.errors import ArgumentError


def import_modules(names: Iterable[str]) -> None:
    """Import modules by name, installed or (as ``python -m`` does) from the working directory.

    Raises:
        ArgumentError: there is no such module, or importing it fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # user code may raise anything
            raise ArgumentError(
                f"--import {name}: {type(error).__name__}: {error}; it takes the name of a module, "
                f"like my_attentions for my_attentions.py in {os.getcwd()}"
            ) from error
