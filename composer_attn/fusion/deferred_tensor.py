"""A tensor that is the output of an attention or a norm, whose numbers are written when needed.

Everybody else sees an ordinary tensor: shape, dtype, device and history are there at once, numbers
as soon as something is done with it. Only what can go on from the numbers ``(N, C)`` that it stands
for takes it apart: a batch norm, an addition, an activation, an attention after that, which then
write one feature map where there would have been two or three.

It is right whichever way it is used, since it is a wrapper of torch's own making:

- Functions of torch, and methods, come by ``__torch_function__``, and get a view with numbers.
- ``torch.autograd.Function.apply``, scripted functions and C++ do not ask there. They find the
  history that :mod:`composer_attn.ops.stages` gave it, and numbers by ``__torch_dispatch__``.
- What is done in place, by whichever way, torch notes in the version and the history. One that was
  changed, or has a hook, is taken apart by nobody.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.fusion.deferred_state import Alias
from composer_attn.fusion.deferred_steps import Continued, no_function
from composer_attn.fusion.tensor_functions import (
    ACTIVATIONS,
    ADDITIONS,
    ADDITIONS_IN_PLACE,
    ASKS,
    CHANGES_HISTORY,
    RESHAPES_IN_PLACE,
    SEES_GRADIENT,
    called_activation,
)

# Of two threads that need numbers, one computes them.
_lock = threading.RLock()


class Deferred(Continued):
    """The attended output of a module, the output of a norm, or a sum: see the module."""

    def _numbers(self) -> Tensor:
        """Return the numbers, written if they have not been."""
        standing = self._standing
        if standing.numbers is None:
            with _lock:
                if standing.numbers is None:
                    standing.numbers = standing.compute()
        return standing.numbers

    def _plain(self) -> Tensor:
        """Return an ordinary tensor: a view of this one, which it changes if it is changed."""
        standing = self._standing
        if standing.instead is not None:
            return standing.instead
        # Not kept: it refers to this one, in a way that the garbage collector does not see.
        with no_function(), torch.set_grad_enabled(True):
            return Tensor.view_as(self, self)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Take in an addition or an activation; hand anything else an ordinary tensor."""
        first = args[0] if args else None
        if func in ACTIVATIONS or func in ADDITIONS:
            taken = cls._taken_in(func, args, kwargs or {})
            if taken is not None:
                return taken
        if func is torch.autograd.grad:
            return _gradients(func, args, kwargs or {})
        if type(first) is cls and first._standing.instead is None:
            if func in ASKS:
                with no_function():
                    return func(*args, **(kwargs or {}))
            if func in SEES_GRADIENT or func in CHANGES_HISTORY:
                return first._with_history(func, args, kwargs or {})
            if func in RESHAPES_IN_PLACE:
                first._become_plain()
        args, kwargs = _plain(args), _plain(kwargs or {})
        if all(kind is cls for kind in types):
            with no_function():
                found = func(*args, **kwargs)
        else:
            found = func(*args, **kwargs)
        # What is done in place returns the tensor that it was done to.
        return first if args and type(first) is cls and found is args[0] else found

    @classmethod
    def _taken_in(cls, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """Return what an addition or an activation comes to; None where it has to be plain."""
        first, second = (*args, None, None)[:2]
        if func in ACTIVATIONS:
            if torch.compiler.is_compiling():
                return None
            found = called_activation(func, args, kwargs)
            if found is None or type(first) is not cls or not first._can_be_activated(*found):
                return None
            return first._activated(*found)
        in_place = func in ADDITIONS_IN_PLACE
        if len(args) != 2 or kwargs:
            return None
        if type(first) is cls and first._takes(second, in_place):
            return first._plus(second, in_place)
        # Not what is added to in place, which others may hold.
        if not in_place and type(second) is cls and second._takes(first, False):
            return second._plus(first, False)
        return None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute on the numbers; what is changed in place is the tensor itself."""
        seen: list[Deferred] = []
        given, named = _with_numbers(args, seen), _with_numbers(kwargs or {}, seen)
        found = func(*given, **named)
        for tensor in seen:
            if found is tensor._standing.numbers:
                return tensor
        return found

    def _with_history(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Do something to the history of this very tensor, which stays one from then on."""
        if func in SEES_GRADIENT:
            self._check_gradient()
        self._standing.apart = True
        with no_function():
            return func(*args, **kwargs)

    def _check_gradient(self) -> None:
        """Make sure that all of the gradient of this tensor passes through it."""
        if self._standing.taken:
            raise ModelError(
                "the gradient of this tensor is not computed: a norm, or a ReLU, that is fused "
                "with what puts it out has used it. Ask for it (retain_grad, register_hook) "
                "before, or call unfuse_attention"
            )

    def _become_plain(self) -> None:
        """Go on as an ordinary tensor, whose shape, say, can change."""
        with torch.set_grad_enabled(True):
            self._standing.instead = Alias.apply(self, self._numbers())


def _gradients(func: Callable, args: tuple, kwargs: dict) -> Any:
    inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
    for each in (inputs,) if isinstance(inputs, Tensor) else inputs:
        if type(each) is Deferred:
            each._check_gradient()
    with no_function():
        return func(*args, **kwargs)


def _with_numbers(value: Any, seen: list[Deferred]) -> Any:
    if isinstance(value, Deferred):
        seen.append(value)
        return value._numbers()
    if isinstance(value, dict):
        return {name: _with_numbers(each, seen) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_with_numbers(each, seen) for each in value]
    return value


def _plain(value: Any) -> Any:
    if type(value) is Deferred:
        return value._plain()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_plain(each) for each in value)
    return value
