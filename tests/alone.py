"""Run code where only torch, its dependencies and this package can be imported."""

import re
import sys
from functools import lru_cache
from importlib import metadata

from tests.commands import ROOT

# The core dependencies in pyproject.toml.
CORE = ("torch", "wrapt")

_BLOCK = """
import sys
absent = set({absent!r})
class Only:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] not in absent
        return self.finder.find_spec(name, path, target) if known else None
sys.meta_path[:] = [Only(finder) for finder in sys.meta_path]
sys.path.insert(0, {root!r})
"""


def normalized(name: str) -> str:
    """Normalize the name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> set[str]:
    """List installed distributions and all of their dependencies, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normalized(waiting.pop())
        if name in found:
            continue
        try:
            requires = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        found.add(name)
        waiting += [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]
    return found


@lru_cache
def owners() -> dict[str, set[str]]:
    """Map each top-level module to the distributions that install files of it."""
    found: dict[str, set[str]] = {}
    for each in metadata.distributions():
        tops = {
            file.parts[0].partition(".")[0] for file in each.files or () if ".." not in file.parts
        }
        for module in filter(str.isidentifier, tops):
            found.setdefault(module, set()).add(normalized(each.metadata["Name"]))
    return found


@lru_cache
def importable() -> frozenset[str]:
    """List the top-level modules of torch and its dependencies."""
    core = closure(CORE)
    return frozenset(module for module, names in owners().items() if core & names)


def alone(code: str) -> tuple[str, ...]:
    """Return the command that runs code in an environment with only the core dependencies."""
    absent = sorted(set(owners()) - importable() - {"composer_attn"})
    return sys.executable, "-c", _BLOCK.format(absent=absent, root=str(ROOT)) + code
