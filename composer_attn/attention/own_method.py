"""A method of one module alone, which copies and pickles with it."""

import weakref
from collections.abc import Callable
from typing import cast

from torch import nn


class OwnMethod:
    """Calls ``function(module, ...)``; set as an attribute, it shadows the method of the class.

    The module is not kept alive by it, and a copy of the module has a method of its own.

    Args:
        module: whose method it is.
        function: what it does; to be pickled, it needs a name that can be imported.
    """

    def __init__(self, module: nn.Module, function: Callable):
        self._module = weakref.ref(module)
        self.function = function

    def __call__(self, *args, **kwargs):
        """Call the function on the module."""
        return self.function(self._module(), *args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "OwnMethod":
        # Whoever copies this holds it by the module, which is alive then.
        module = cast(nn.Module, self._module())
        return OwnMethod(memo.get(id(module), module), self.function)

    def __reduce__(self):
        return OwnMethod, (self._module(), self.function)
