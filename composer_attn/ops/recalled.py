"""What was found out about modules once, and whether it still holds.

Preparing a call takes longer than the call itself on small feature maps: it is done once, and again
if anything that it depends on has changed since.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# A table of a module, such as its parameters or attributes, and a name in it.
Entry = tuple[dict[str, Any], str]
_Memory = tuple[int, int, torch.dtype, bool, bool]
# The tables themselves.
TABLES = ("_modules", "_parameters", "_buffers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Attributes of an attention of this package.
_SETTINGS = ("squeeze", "gate", "start", "_gate", "observer")
# Attributes of a module that replace its forward.
_REPLACED = ("forward", "_compiled_call_impl")


class Recalled:
    """Entries of modules' tables, and the memory of the tensors among them, at one time.

    It is asked at every call: most of it runs in functions of Python that are written in C.

    Args:
        entries: the entries; a missing one counts as ``None``.
        modules: modules whose classes, hooks and forwards matter as well.
    """

    __slots__ = (
        "_hooks", "_kinds", "_memory", "_modules", "_names", "_numbers", "_replaced", "_tables",
        "_tensors", "_values",
    )  # fmt: skip

    def __init__(self, entries: Iterable[Entry], modules: Iterable[nn.Module] = ()):
        self._modules = list(modules)
        self._kinds = list(map(type, self._modules))
        own = [vars(each) for each in self._modules]
        self._hooks = [each[name] for each in own for name in _HOOKS]
        self._replaced = any(each.get(name) is not None for each in own for name in _REPLACED)
        names = (*_HOOKS, *_REPLACED, *TABLES)
        every = [*entries, *[(each, name) for each in own for name in names]]
        self._tables, self._names = [table for table, _ in every], [name for _, name in every]
        # They are kept alive, so that no other object gets the number of one of them.
        self._values = list(map(dict.get, self._tables, self._names))
        self._numbers = list(map(id, self._values))
        self._tensors = [each for each in self._values if isinstance(each, Tensor)]
        self._memory = self._described()

    def holds(self) -> bool:
        """Return whether all entries and classes, and where the tensors are, are as they were."""
        return (
            list(map(id, map(dict.get, self._tables, self._names))) == self._numbers
            # Parameters can be given other memory in place.
            and self._described() == self._memory
            and list(map(type, self._modules)) == self._kinds
        )

    def is_watched(self) -> bool:
        """Return whether a module has hooks or another forward, and so has to be called."""
        return self._replaced or any(self._hooks)

    def _described(self) -> list[_Memory]:
        return [
            (each.data_ptr(), each.numel(), each.dtype, each.is_contiguous(), each.is_neg())
            for each in self._tensors
        ]


def entries_of(attention: nn.Module) -> Iterator[Entry]:
    """Yield what determines how an attention is computed: settings, layers, their parameters."""
    for name in _SETTINGS:
        yield vars(attention), name
    for each in attention.modules():
        for table in (each._modules, each._parameters):
            for name in table:
                yield table, name


def holds_parameters(module: nn.Module, *names: str) -> bool:
    """Return whether weights of a module are in its table, where others are seen, if it has them.

    Parametrizations, and the hooks of pruning, compute them as plain attributes.
    """
    own = module._parameters
    return all(name in own or not hasattr(module, name) for name in names)


def holds_weights(attention: nn.Module) -> bool:
    """Return whether the same is true of all layers of an attention."""
    return all(holds_parameters(each, "weight", "bias") for each in attention.children())
