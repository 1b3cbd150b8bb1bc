"""A tensor subclass for the output of an attention or a norm, whose values are computed lazily.

To all other code it behaves as an ordinary tensor: shape, dtype, device and autograd history are
available at once, and values are computed when an operation needs them. Only operations that can
continue from the ``(N, C)`` tensors that it holds take it over: a batch norm, an addition, an
activation, or an attention after that. They then write one feature map instead of two or three.

As a wrapper subclass it is correct in every use:

- Functions and methods of torch arrive in ``__torch_function__``, and receive a view with values.
- ``torch.autograd.Function.apply``, scripted functions and C++ bypass that. They see the history
  that :mod:`composer_attn.ops.stages` recorded, and get values in ``__torch_dispatch__``.
- In-place operations, however called, are recorded in the version counter and the history. A tensor
  that was changed or has a hook is never fused further.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.fusion.deferred_state import Alias
from composer_attn.fusion.deferred_steps import Continuable, no_function
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

# If two threads need the values, only one computes them.
_lock = threading.RLock()


class Deferred(Continuable):
    """The deferred output of an attended module or a norm, or a sum with it; see the module."""

    def _numbers(self) -> Tensor:
        """Return the values, computed on first use."""
        state = self._state
        if state.numbers is None:
            with _lock:
                if state.numbers is None:
                    state.numbers = state.compute()
        return state.numbers

    def _plain(self) -> Tensor:
        """Return an ordinary tensor: a view of this one, so that in-place changes affect both."""
        state = self._state
        if state.instead is not None:
            return state.instead
        # Not cached: it refers to this tensor in a cycle that the garbage collector cannot see.
        with no_function(), torch.set_grad_enabled(True):
            return Tensor.view_as(self, self)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Defer an addition or an activation; give any other function ordinary tensors."""
        first = args[0] if args else None
        if func in ACTIVATIONS or func in ADDITIONS:
            taken = cls._taken_in(func, args, kwargs or {})
            if taken is not None:
                return taken
        if func is torch.autograd.grad:
            return _gradients(func, args, kwargs or {})
        if type(first) is cls and first._state.instead is None:
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
        # In-place operations return the tensor that they were applied to.
        return first if args and type(first) is cls and found is args[0] else found

    @classmethod
    def _taken_in(cls, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """Return the result of an addition or activation if it can be fused, else None."""
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
        # Not for in-place additions: their first operand may be held elsewhere.
        if not in_place and type(second) is cls and second._takes(first, False):
            return second._plus(first, False)
        return None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute with the values; in-place operations return the deferred tensor itself."""
        seen: list[Deferred] = []
        given, named = _with_numbers(args, seen), _with_numbers(kwargs or {}, seen)
        found = func(*given, **named)
        for tensor in seen:
            if found is tensor._state.numbers:
                return tensor
        return found

    def _with_history(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Call a function that affects the history of this tensor; prevent further fusion of it."""
        if func in SEES_GRADIENT:
            self._check_gradient()
        self._state.is_final = True
        with no_function():
            return func(*args, **kwargs)

    def _check_gradient(self) -> None:
        """Raise if part of the gradient of this tensor does not pass through it."""
        if self._state.taken:
            raise ModelError(
                "the gradient of this tensor is not computed: the norm or ReLU that used it is "
                "fused with the operation that returned it. Request it (retain_grad, "
                "register_hook) before that use, or call unfuse_attention"
            )

    def _become_plain(self) -> None:
        """Replace this by an ordinary tensor, so that its shape or memory can change."""
        with torch.set_grad_enabled(True):
            self._state.instead = Alias.apply(self, self._numbers())


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
