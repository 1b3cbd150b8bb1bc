"""Attend and detach one module in place: the module stays, its class learns to attend.

An attended module is the same object as before, with its attention as a child and a class that
extends its own. All of its attributes, parameters, state-dict keys, hooks and sharers stay as they
are; ``torch.nn.utils.parametrize`` works in the same way.
"""

from collections.abc import Callable
from weakref import WeakValueDictionary

from torch import nn

from composer_attn.errors import ModelError

CHILD = "attention"

# A class lives as long as a module (or a caller) uses it.
_attended_classes: "WeakValueDictionary[type, type]" = WeakValueDictionary()


class AttendsOutput:
    """Mixed into a module's class: passes the module's output through its attention."""

    attention: nn.Module

    def forward(self, *args, **kwargs):
        """Compute what the module computes, then scale its channels."""
        return self.attention(super().forward(*args, **kwargs))

    def __reduce_ex__(self, protocol):
        # The class has no importable name: copy and pickle make a module of the original class,
        # and extend that class again.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        args = tuple(original_class(self) if arg is type(self) else arg for arg in args)
        return _make_attended, (make, args), *state

    def __prepare_scriptable__(self):
        raise ModelError(
            "torch.jit.script cannot compile an attended module: use torch.jit.trace or "
            "torch.export, or call detach_attention first"
        )


# The signature of nn.Conv*d: where a convolution is the whole model, torch.fx cannot unpack *args,
# and torch.export takes dynamic shapes by argument.
_FORWARDS_OF_ONE_INPUT = {nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


def _forward_of_one_input(self, input):
    return AttendsOutput.forward(self, input)


def _make_attended(make: Callable, args: tuple):
    module = make(*args)
    set_class(module, attended_class(type(module)))
    return module


def attended_class(original: type) -> type:
    """Return the class that extends ``original`` by attention; one for each original."""
    found = _attended_classes.get(original)
    if found is None:
        # torch.fx keeps a module whole where its class comes from torch.nn: so does ours, then, and
        # what finds a network's convolutions in its graph (WeightStandardization) still does.
        attributes = {"__module__": original.__module__}
        if original.forward in _FORWARDS_OF_ONE_INPUT:
            attributes["forward"] = _forward_of_one_input
        found = type(f"Attended{original.__name__}", (AttendsOutput, original), attributes)
        _attended_classes[original] = found
    return found


def original_class(module: nn.Module) -> type:
    """Return the class that an attended module had before."""
    mro = type(module).__mro__
    return mro[mro.index(AttendsOutput) + 1]


def is_attended(module: nn.Module) -> bool:
    """Say whether a module passes its output through an attention of ours."""
    return isinstance(module, AttendsOutput)


def is_extended_further(module: nn.Module) -> bool:
    """Say whether an attended module's class was extended after the surgery.

    A parametrization extends the class, or, on a module that was parametrized before the surgery,
    adds a property to it.
    """
    cls = type(module)
    added = any(isinstance(value, property) for value in vars(cls).values())
    return added or AttendsOutput not in cls.__bases__


def set_class(module: nn.Module, cls: type) -> None:
    """Give a module another class, whatever its own ``__setattr__`` does."""
    object.__setattr__(module, "__class__", cls)


def attend(module: nn.Module, attention: nn.Module) -> None:
    """Make a module pass its output through ``attention``, in place."""
    cls = attended_class(type(module))
    module._modules[CHILD] = attention
    set_class(module, cls)


def detach(module: nn.Module) -> None:
    """Undo :func:`attend` exactly; harmless where only half of it was done."""
    if is_attended(module):
        set_class(module, original_class(module))
    module._modules.pop(CHILD, None)
