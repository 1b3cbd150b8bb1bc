"""Attend and detach one module in place: the module stays, its class learns to attend.

An attended module is the same object as before, with its attention as a child and a class that
extends its own. All of its attributes, parameters, state-dict keys, hooks and sharers stay as they
are; ``torch.nn.utils.parametrize`` works in the same way.
"""

from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from composer_attn.errors import ModelError
from composer_attn.ops import attend as attend_alone
from composer_attn.surgery.handoff import Link, attended, can_be_joined, needs_plain_operations

CHILD = "attention"

# By the original class and by what is attended. A class lives as long as something uses it.
_attended_classes: "WeakValueDictionary[tuple[type, type], type]" = WeakValueDictionary()


class Attends:
    """Mixed into the class of every attended module."""

    attention: nn.Module

    # Set on modules that are fused, by surgery.fuse.
    _attn_backend: str | None = None
    _attn_gives: Link | None = None

    def _attend(self, x, link: Link | None = None):
        backend = self._attn_backend
        if backend is None or needs_plain_operations() or not isinstance(x, Tensor):
            return self.attention(x)
        if not can_be_joined(self.attention):
            return self.attention(x)
        if not torch.compiler.is_compiling():
            return attended(self, x, link)
        y = attend_alone(x, self.attention, backend)
        if link is not None:
            link.traced = (y, x, self)
        return y

    def __reduce_ex__(self, protocol):
        # The class has no importable name: copy and pickle make a module of the original class,
        # and extend that class again.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        args = tuple(original_class(self) if arg is type(self) else arg for arg in args)
        return _make_attended, (make, args, attended_side(self)), *state

    def __prepare_scriptable__(self):
        raise ModelError(
            "torch.jit.script cannot compile an attended module: use torch.jit.trace or "
            "torch.export, or call detach_attention first"
        )


class AttendsOutput(Attends):
    """Passes the module's output through its attention."""

    def forward(self, *args, **kwargs):
        """Compute what the module computes, then scale its channels."""
        x = super().forward(*args, **kwargs)
        return self._attend(x, self._attn_gives)


class AttendsInput(Attends):
    """Passes the module's first input through its attention."""

    def forward(self, x, *args, **kwargs):
        """Scale the input's channels, then compute what the module computes."""
        return super().forward(self._attend(x), *args, **kwargs)


class AttendsShortcut(Attends):
    """Passes the shortcut of a block ``y = x + branch(x)`` through its attention."""

    def forward(self, x, *args, **kwargs):
        """Compute ``attention(x) + branch(x)``, the branch as it is."""
        return super().forward(x, *args, **kwargs) + (self._attend(x) - x)


SIDES: dict[str, type[Attends]] = {
    "output": AttendsOutput,
    "input": AttendsInput,
    "shortcut": AttendsShortcut,
}

# These take one argument named input. Where a module is the whole model, torch.fx cannot unpack
# *args, and torch.export takes dynamic shapes by argument: an attended one keeps the signature.
_FORWARDS_OF_ONE_INPUT = {
    cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, _NormBase, nn.Sequential, nn.Identity)
}


def _make_attended(make: Callable, args: tuple, side: str):
    module = make(*args)
    set_class(module, attended_class(type(module), side))
    return module


def attended_class(original: type, side: str = "output") -> type:
    """Return the class that extends ``original`` by attention; one for each original and side."""
    mixin = SIDES[side]
    found = _attended_classes.get((original, mixin))
    if found is None:
        # torch.fx keeps a module whole where its class comes from torch.nn: so does ours, then, and
        # what finds a network's convolutions in its graph (WeightStandardization) still does.
        attributes = {"__module__": original.__module__}
        if original.forward in _FORWARDS_OF_ONE_INPUT:
            attributes["forward"] = lambda self, input: mixin.forward(self, input)
        found = type(f"Attended{original.__name__}", (mixin, original), attributes)
        _attended_classes[original, mixin] = found
    return found


def original_class(module: nn.Module) -> type:
    """Return the class that an attended module had before."""
    mro = type(module).__mro__
    return mro[mro.index(Attends) + 1]


def attended_side(module: nn.Module) -> str:
    """Return what an attended module passes through its attention: a key of :data:`SIDES`."""
    return next(side for side, mixin in SIDES.items() if isinstance(module, mixin))


def is_attended(module: nn.Module) -> bool:
    """Say whether a module passes its output (or input, or shortcut) through attention of ours."""
    return isinstance(module, Attends)


def is_extended_further(module: nn.Module) -> bool:
    """Say whether an attended module's class was extended after the surgery.

    A parametrization extends the class, or, on a module that was parametrized before the surgery,
    adds a property to it.
    """
    cls = type(module)
    added = any(isinstance(value, property) for value in vars(cls).values())
    return added or not set(cls.__bases__) & set(SIDES.values())


def set_class(module: nn.Module, cls: type) -> None:
    """Give a module another class, whatever its own ``__setattr__`` does."""
    object.__setattr__(module, "__class__", cls)


def attend(module: nn.Module, attention: nn.Module, side: str = "output") -> None:
    """Make a module pass one of its sides through ``attention``, in place."""
    cls = attended_class(type(module), side)
    module._modules[CHILD] = attention
    set_class(module, cls)


def detach(module: nn.Module) -> None:
    """Undo :func:`attend` exactly; harmless where only half of it was done."""
    if is_attended(module):
        set_class(module, original_class(module))
    module._modules.pop(CHILD, None)
