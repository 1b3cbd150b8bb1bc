"""A method of a single module instance, which is copied and pickled with it."""

import weakref
from collections.abc import Callable
from typing import cast

from torch import nn


class OwnMethod:
    """Calls ``function(module, ...)``; as an instance attribute it shadows the class's method.

    It does not keep the module alive, and a copy of the module gets a method of its own.

    Args:
        module: the module that it belongs to.
        function: the implementation; to be picklable, it must be importable by name.
    """

    def __init__(self, module: nn.Module, function: Callable):
        self._module = weakref.ref(module)
        self.function = function

    def __call__(self, *args, **kwargs):
        """Call the function on the module."""
        return self.function(self._module(), *args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "OwnMethod":
        # It is only reached through its module, which is therefore alive.
        module = cast(nn.Module, self._module())
        return OwnMethod(memo.get(id(module), module), self.function)

    def __reduce__(self):
        return OwnMethod, (self._module(), self.function)
