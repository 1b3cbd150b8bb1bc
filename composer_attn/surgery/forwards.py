"""The forward methods of attended classes."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature

from torch import nn


def first_parameter(forward: Callable) -> str | None:
    """Return the name of the first parameter after self, or None if it has none or no signature."""
    try:
        parameters = list(signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    named = len(parameters) > 1 and parameters[1].kind is Parameter.POSITIONAL_OR_KEYWORD
    return parameters[1].name if named else None


def staying(mixin: type[nn.Module], one_input: bool) -> Callable:
    """Return a forward that remains correct after its module has been detached.

    Accelerate, for example, saves a module's forward and sets a wrapper on the instance that calls
    it: by the time it is called, the module may have been detached.
    """
    if one_input:
        return lambda self, input: (
            mixin.forward(self, input)
            if isinstance(self, mixin)
            else type(self).forward(self, input)
        )

    @wraps(mixin.forward)
    def forward(self, *args, **kwargs):
        if isinstance(self, mixin):
            return mixin.forward(self, *args, **kwargs)
        return type(self).forward(self, *args, **kwargs)

    return forward
