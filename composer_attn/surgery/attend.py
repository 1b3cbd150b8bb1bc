"""Attend and detach a single module in place, by extending the class of that one instance.

An attended module is the same object as before, with its attention as a child module and a class
that extends its original class. Its attributes, parameters, state-dict keys, hooks and the modules
that share it are unaffected; ``torch.nn.utils.parametrize`` works in the same way.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, cast
from weakref import WeakValueDictionary

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from composer_attn.errors import ModelError
from composer_attn.surgery.feature_maps import (
    BATCH_DIMENSIONS,
    follow_pruning,
    is_sample,
)
from composer_attn.surgery.folding import refuse_fuse_modules
from composer_attn.surgery.forwards import first_parameter, staying
from composer_attn.surgery.parametrized import (
    class_before,
    has_more_properties,
    is_moved,
    move_upon,
)

CHILD = "attention"

# Attribute set on an attention by the surgery: the side of the module that passes through it.
MARK = "_attn_side"

# Keyed by original class and mixin. Weak values: a class lives as long as something uses it.
_attended_classes: "WeakValueDictionary[tuple[type, type], type[Attends]]" = WeakValueDictionary()

# Type checkers see the mixin as a module; at run time the original class provides that base.
if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class FusedAttention(Protocol):
    """Computes the attention of a fused module, by a backend."""

    backend: str

    def attend_beforehand(self, module: "Attends", x: Any) -> Any:
        """Return the module's attended output, given its input, or ``None``."""
        ...

    def attend_prepared(self, module: "Attends", x: Any, is_output: bool) -> Any:
        """Do as ``attend``, in what an earlier call has prepared; ``None`` if it does not fit."""
        ...

    def attend(self, module: "Attends", x: Any, is_output: bool) -> Any:
        """Return ``x``, the module's output or (unless ``is_output``) its input, rescaled."""
        ...


class Attends(_Module):
    """Mixed into the class of every attended module."""

    attention: nn.Module

    # Number of dimensions of a batched input; 0 if unknown.
    _attn_dimensions: int = 0

    # Set on fused modules by composer_attn.fusion.
    _attn_fused: "FusedAttention | None" = None
    # Name of the first input in the signature of the original forward.
    _attn_input: str | None = None

    def _first_input(self, x, kwargs: dict):
        """Return the first input, passed by position or by name, and the remaining keywords."""
        if x is not None:
            return x, kwargs
        if self._attn_input not in kwargs:
            name = f", or by the name {self._attn_input}" if self._attn_input else ""
            raise TypeError(f"an attended {original_class(self).__name__} takes an input{name}")
        rest = {name: value for name, value in kwargs.items() if name != self._attn_input}
        return kwargs[self._attn_input], rest

    def _attend(self, x, is_output=False):
        fused = self._attn_fused
        if fused is not None:
            found = fused.attend_prepared(self, x, is_output)
            if found is not None:
                return found
        follow_pruning(self, x)
        return self.attention(x) if fused is None else fused.attend(self, x, is_output)

    def _attend_sample(self, x, given):
        """Attend ``x``, computed from ``given``, which may be a single unbatched sample."""
        if is_sample(given, self._attn_dimensions):
            return self._attend(x.unsqueeze(0)).squeeze(0)
        return self._attend(x)

    def __reduce_ex__(self, protocol):
        # The class has no importable name: copy and pickle create a module of the original class
        # and extend that class again.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        args = tuple(_extended_class(self) if arg is type(self) else arg for arg in args)
        return _make_attended, (make, args, attended_side(self)), *state

    def __prepare_scriptable__(self):
        raise ModelError(
            "torch.jit.script cannot compile an attended module: use torch.jit.trace or "
            "torch.export, or call detach_attention first"
        )


class AttendsOutput(Attends):
    """Passes the module's output through its attention."""

    def forward(self, *args, **kwargs):
        """Run the original forward, then scale the channels of its output."""
        if self._attn_fused is not None and len(args) == 1 and not kwargs:
            found = self._attn_fused.attend_beforehand(self, args[0])
            if found is not None:
                return found
        x = super().forward(*args, **kwargs)
        given = args[0] if args else next(iter(kwargs.values()), None)
        if is_sample(given, self._attn_dimensions):
            return self._attend_sample(x, given)
        return self._attend(x, is_output=True)


class AttendsInput(Attends):
    """Passes the module's first input through its attention."""

    def forward(self, x=None, /, *args, **kwargs):
        """Scale the channels of the input, then run the original forward."""
        x, kwargs = self._first_input(x, kwargs)
        return super().forward(self._attend_sample(x, x), *args, **kwargs)


class AttendsShortcut(Attends):
    """Passes the shortcut of a block ``y = x + branch(x)`` through its attention."""

    def forward(self, x=None, /, *args, **kwargs):
        """Compute ``attention(x) + branch(x)``, with the branch unchanged."""
        x, kwargs = self._first_input(x, kwargs)
        return super().forward(x, *args, **kwargs) + (self._attend_sample(x, x) - x)


SIDES: dict[str, type[Attends]] = {
    "output": AttendsOutput,
    "input": AttendsInput,
    "shortcut": AttendsShortcut,
}

# These take one argument named input. If such a module is the whole model, torch.fx cannot unpack
# *args and torch.export takes dynamic shapes by argument name, so attending keeps the signature.
_FORWARDS_OF_ONE_INPUT = {
    cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, _NormBase, nn.Sequential, nn.Identity)
}


def _make_attended(make: Callable, args: tuple, side: str):
    module = make(*args)
    set_class(module, attended_class(type(module), side))
    return module


def attended_class(original: type[nn.Module], side: str = "output") -> type[Attends]:
    """Return the attended class extending ``original``, cached per original class and side."""
    mixin = SIDES[side]
    found = _attended_classes.get((original, mixin))
    if found is None:
        # torch.fx treats modules whose class is defined in torch.nn as leaves. Keeping __module__
        # keeps that, and algorithms that look for convolutions in the graph (Composer's
        # WeightStandardization) still find them.
        attributes: dict[str, Any] = {
            "__module__": original.__module__,
            "_attn_input": first_parameter(original.forward),
            "__init__": building(original, _extended_class),
            "forward": staying(mixin, one_input=original.forward in _FORWARDS_OF_ONE_INPUT),
        }
        dimensions = (n for kind, n in BATCH_DIMENSIONS.items() if issubclass(original, kind))
        attributes["_attn_dimensions"] = next(dimensions, 0)
        made = type(f"Attended{original.__name__}", (mixin, original), attributes)
        found = cast(type[Attends], made)  # by its first base
        _attended_classes[original, mixin] = found
        refuse_fuse_modules(found, original)
    return found


def building(original: type, extended: Callable[[nn.Module], type]) -> Callable:
    """Return an ``__init__`` that builds a plain module of the class being extended.

    LoRA, for example, creates new layers of an existing layer's class: ``type(conv)(3, 8, 1)``.

    Args:
        original: the class being extended.
        extended: returns that class, given an instance of the extending class.
    """

    copied: Any = original  # its __init__ only provides name and docstring

    @wraps(copied.__init__)
    def build(self, *args, **kwargs):
        attention, cls = vars(self).get("_modules", {}).get(CHILD), type(self)
        set_class(self, extended(self))
        try:
            self.__init__(*args, **kwargs)
        finally:
            if attention is not None:  # __init__ was called again on an attended module
                self._modules[CHILD] = attention
                set_class(self, cls)

    return build


def _extended_class(module: nn.Module) -> type[nn.Module]:
    mro = type(module).__mro__
    return mro[mro.index(Attends) + 1]


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that an attended module had before it was attended."""
    return class_before(module) if is_moved(module) else _extended_class(module)


def attention_of(module: nn.Module) -> nn.Module:
    """Return the attention that a surgery added to a module, even if it is no longer in use."""
    return cast(nn.Module, module._modules[CHILD])  # never None after a surgery


def attended_side(module: nn.Module) -> str:
    """Return which side of an attended module is rescaled: a key of :data:`SIDES`."""
    return next(side for side, mixin in SIDES.items() if isinstance(module, mixin))


def find_attended(model: nn.Module) -> dict[str, Attends]:
    """Return the attended modules of a model by name, shared modules once."""
    return {name: module for name, module in model.named_modules() if is_attended(module)}


def is_attended(module: nn.Module | None) -> TypeGuard[Attends]:
    """Return whether a module passes its output, input or shortcut through an added attention."""
    return isinstance(module, Attends)


def is_extended_further(module: nn.Module) -> bool:
    """Return whether an attended module's class was extended after the surgery.

    A parametrization extends the class or, if the module was parametrized before the surgery, adds
    a property to it.
    """
    if is_moved(module):
        return has_more_properties(module)
    return not set(type(module).__bases__) & set(SIDES.values())


def set_class(module: nn.Module, cls: type) -> None:
    """Set the class of a module, bypassing its own ``__setattr__``."""
    object.__setattr__(module, "__class__", cls)


def attend(
    module: nn.Module, attention: nn.Module, side: str = "output", dimensions: int = 0
) -> None:
    """Pass one side of a module through ``attention``, in place.

    Args:
        module: the module to attend.
        attention: the module that rescales the channels.
        side: a key of :data:`SIDES`.
        dimensions: number of dimensions of a batched input, for classes that do not determine it;
            0 if unknown.
    """
    cls = type(module)
    if is_parametrized(module):
        made = move_upon(cls, attended_class(cls.__bases__[0], side))
        attended = cast(type[Attends], made)  # by its one base
    else:
        attended = attended_class(cls, side)
    module._modules[CHILD] = attention
    # An attribute, so that copies and conversions of the module preserve it.
    vars(attention)[MARK] = side
    if dimensions and not attended._attn_dimensions:
        vars(module)["_attn_dimensions"] = dimensions
    set_class(module, attended)


def detach(module: nn.Module) -> None:
    """Undo :func:`attend` exactly; safe to call if it was only partly done."""
    if is_attended(module):
        set_class(module, original_class(module))
    vars(module).pop("_attn_dimensions", None)
    attention = module._modules.pop(CHILD, None)
    if attention is not None:
        vars(attention).pop(MARK, None)
