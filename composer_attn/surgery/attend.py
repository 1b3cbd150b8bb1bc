"""Attend and detach one module in place: the module stays, its class learns to attend.

An attended module is the same object as before, with its attention as a child and a class that
extends its own. All of its attributes, parameters, state-dict keys, hooks and sharers stay as they
are; ``torch.nn.utils.parametrize`` works in the same way.
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

# What a surgery notes on an attention: the side of the module that passes through it.
MARK = "_attn_side"

# By the original class and by what is attended. A class lives as long as something uses it.
_attended_classes: "WeakValueDictionary[tuple[type, type], type[Attends]]" = WeakValueDictionary()

# What has it mixed in is a module. At run time the module's own class stands behind it instead.
if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class FusedAttention(Protocol):
    """Computes the attention of a fused module, by a backend."""

    backend: str

    def attend(self, module: "Attends", x: Any, is_output: bool) -> Any:
        """Return ``x`` attended, which is the module's own output, or what goes into it."""
        ...


class Attends(_Module):
    """Mixed into the class of every attended module."""

    attention: nn.Module

    # How many dimensions a batch has; 0 where that cannot be told.
    _attn_dimensions: int = 0

    # Set on modules that are fused, by the package above this one.
    _attn_fused: "FusedAttention | None" = None
    # What the module's own forward calls its first input.
    _attn_input: str | None = None

    def _first_input(self, x, kwargs: dict):
        """Return the first input, which may come by its name, and what else comes by name."""
        if x is not None:
            return x, kwargs
        if self._attn_input not in kwargs:
            name = f", or by the name {self._attn_input}" if self._attn_input else ""
            raise TypeError(f"an attended {original_class(self).__name__} takes an input{name}")
        rest = {name: value for name, value in kwargs.items() if name != self._attn_input}
        return kwargs[self._attn_input], rest

    def _attend(self, x, is_output=False):
        follow_pruning(self, x)
        if self._attn_fused is None:
            return self.attention(x)
        return self._attn_fused.attend(self, x, is_output)

    def _attend_sample(self, x, given):
        """Attend what came of ``given``, which may be one sample without a batch."""
        if is_sample(given, self._attn_dimensions):
            return self._attend(x.unsqueeze(0)).squeeze(0)
        return self._attend(x)

    def __reduce_ex__(self, protocol):
        # The class has no importable name: copy and pickle make a module of the original class,
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
        """Compute what the module computes, then scale its channels."""
        x = super().forward(*args, **kwargs)
        given = args[0] if args else next(iter(kwargs.values()), None)
        if is_sample(given, self._attn_dimensions):
            return self._attend_sample(x, given)
        return self._attend(x, is_output=True)


class AttendsInput(Attends):
    """Passes the module's first input through its attention."""

    def forward(self, x=None, /, *args, **kwargs):
        """Scale the input's channels, then compute what the module computes."""
        x, kwargs = self._first_input(x, kwargs)
        return super().forward(self._attend_sample(x, x), *args, **kwargs)


class AttendsShortcut(Attends):
    """Passes the shortcut of a block ``y = x + branch(x)`` through its attention."""

    def forward(self, x=None, /, *args, **kwargs):
        """Compute ``attention(x) + branch(x)``, the branch as it is."""
        x, kwargs = self._first_input(x, kwargs)
        return super().forward(x, *args, **kwargs) + (self._attend_sample(x, x) - x)


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


def attended_class(original: type[nn.Module], side: str = "output") -> type[Attends]:
    """Return the class that extends ``original`` by attention; one for each original and side."""
    mixin = SIDES[side]
    found = _attended_classes.get((original, mixin))
    if found is None:
        # torch.fx keeps a module whole where its class comes from torch.nn: so does ours, then, and
        # what finds a network's convolutions in its graph (WeightStandardization) still does.
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
    """Return an ``__init__`` that builds a module of the class that one of ours extends.

    LoRA, for one, builds layers of a layer's own class beside it: ``type(conv)(3, 8, 1)``.

    Args:
        original: the class that is extended.
        extended: returns it, given a module of the class that extends it.
    """

    copied: Any = original  # its __init__ only lends name and docstring

    @wraps(copied.__init__)
    def build(self, *args, **kwargs):
        attention, cls = vars(self).get("_modules", {}).get(CHILD), type(self)
        set_class(self, extended(self))
        try:
            self.__init__(*args, **kwargs)
        finally:
            if attention is not None:  # an attended module is built anew, in place
                self._modules[CHILD] = attention
                set_class(self, cls)

    return build


def _extended_class(module: nn.Module) -> type[nn.Module]:
    mro = type(module).__mro__
    return mro[mro.index(Attends) + 1]


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that an attended module had before."""
    return class_before(module) if is_moved(module) else _extended_class(module)


def attention_of(module: nn.Module) -> nn.Module:
    """Return the attention that a surgery added to a module, whether it still attends or not."""
    return cast(nn.Module, module._modules[CHILD])  # a surgery leaves no None there


def attended_side(module: nn.Module) -> str:
    """Return what an attended module passes through its attention: a key of :data:`SIDES`."""
    return next(side for side, mixin in SIDES.items() if isinstance(module, mixin))


def find_attended(model: nn.Module) -> dict[str, Attends]:
    """Return the attended modules of a model by name; a shared module comes once."""
    return {name: module for name, module in model.named_modules() if is_attended(module)}


def is_attended(module: nn.Module | None) -> TypeGuard[Attends]:
    """Say whether a module passes its output (or input, or shortcut) through attention of ours."""
    return isinstance(module, Attends)


def is_extended_further(module: nn.Module) -> bool:
    """Say whether an attended module's class was extended after the surgery.

    A parametrization extends the class, or, on a module that was parametrized before the surgery,
    adds a property to it.
    """
    if is_moved(module):
        return has_more_properties(module)
    return not set(type(module).__bases__) & set(SIDES.values())


def set_class(module: nn.Module, cls: type) -> None:
    """Give a module another class, whatever its own ``__setattr__`` does."""
    object.__setattr__(module, "__class__", cls)


def attend(
    module: nn.Module, attention: nn.Module, side: str = "output", dimensions: int = 0
) -> None:
    """Make a module pass one of its sides through ``attention``, in place.

    Args:
        module: what to attend.
        attention: what rescales the channels.
        side: a key of :data:`SIDES`.
        dimensions: how many dimensions a batch has, where the module's class does not tell; 0
            where nothing does.
    """
    cls = type(module)
    if is_parametrized(module):
        made = move_upon(cls, attended_class(cls.__bases__[0], side))
        attended = cast(type[Attends], made)  # by its one base
    else:
        attended = attended_class(cls, side)
    module._modules[CHILD] = attention
    # Copies and conversions of the module carry it along.
    vars(attention)[MARK] = side
    if dimensions and not attended._attn_dimensions:
        vars(module)["_attn_dimensions"] = dimensions
    set_class(module, attended)


def detach(module: nn.Module) -> None:
    """Undo :func:`attend` exactly; harmless where only half of it was done."""
    if is_attended(module):
        set_class(module, original_class(module))
    vars(module).pop("_attn_dimensions", None)
    attention = module._modules.pop(CHILD, None)
    if attention is not None:
        vars(attention).pop(MARK, None)
