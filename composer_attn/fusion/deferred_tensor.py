"""A tensor that is the output of an attention or a norm, whose numbers are written when needed.

Everybody else sees an ordinary tensor: shape, dtype, device and history are there at once, numbers
as soon as something is done with it. Only what can go on from the numbers ``(N, C)`` that it stands
for takes it apart: a batch norm, an addition, a ReLU, which then write one feature map where there
would have been two or three.

It is right whichever way it is used, since it is a wrapper of torch's own making:

- Functions of torch, and methods, come by ``__torch_function__``, and get a view with numbers.
- ``torch.autograd.Function.apply``, scripted functions and C++ do not ask there. They find the
  history that :mod:`composer_attn.ops.stages` gave it, and numbers by ``__torch_dispatch__``.
- What is done in place, by whichever way, torch notes in the version and the history. One that was
  changed, or has a hook, is taken apart by nobody.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.fusion.deferred_state import Alias, Become, Plus, PlusInPlace, Stage, Standing
from composer_attn.fusion.tensor_functions import (
    ADDITIONS,
    ADDITIONS_IN_PLACE,
    ASKS,
    CHANGES_HISTORY,
    RELUS,
    RELUS_IN_PLACE,
    RESHAPES_IN_PLACE,
    SEES_GRADIENT,
)
from composer_attn.ops.stages import Normalized

_Kind = TypeVar("_Kind", bound=Stage)
_no_function = torch._C.DisableTorchFunctionSubclass
# Of two threads that need numbers, one computes them.
_lock = threading.RLock()


class Deferred(Tensor):
    """The attended output of a module, the output of a norm, or a sum: see the module."""

    _standing: Standing

    @classmethod
    def of(
        cls, stage: Stage, until_relu: bool = False, exposed: tuple[Tensor, ...] = ()
    ) -> "Deferred":
        """Stand for what a stage computes.

        Args:
            stage: attention, or a norm, up to its feature map.
            until_relu: whether a ReLU is expected after an addition.
            exposed: tensors that it is computed from and others hold.
        """
        versions = tuple((tensor, tensor._version) for tensor in exposed)
        standing = Standing(stage, until_relu, versions)
        return cls._made(standing, stage.result)

    @classmethod
    def _made(cls, standing: Standing, differentiable: Callable) -> "Deferred":
        x = standing.stage.x

        def make() -> Tensor:
            made = cls._make_wrapper_subclass(  # type: ignore[attr-defined]  # not in torch's stubs
                cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
            )
            made._standing = standing
            return made

        made = differentiable(make=make)
        with _no_function():
            standing.node = made.grad_fn
            standing.version = None if made.is_inference() else made._version
        return made

    def taken_apart(self, kind: type[_Kind]) -> _Kind | None:
        """Return the stage it stands for; None where it is of another kind, or not just that."""
        standing = self._standing
        stage = standing.stage
        if type(stage) is not kind or standing.shortcut is not None:
            return None
        if not self._is_intact():
            return None
        standing.taken = standing.gradients
        return stage

    def exposed(self) -> tuple[Tensor, ...]:
        """Return the tensors that it is computed from and others hold."""
        return tuple(tensor for tensor, _ in self._standing.exposed)

    def _is_intact(self) -> bool:
        """Say whether it is still what it was made as, and gradients are recorded as then."""
        standing = self._standing
        if standing.apart or standing.instead is not None:
            return False
        if standing.gradients != torch.is_grad_enabled():
            return False
        with _no_function():
            if self.grad_fn is not standing.node:
                return False
            if standing.version is not None and self._version != standing.version:
                return False
        return standing.agrees()

    def _relu(self, in_place: bool) -> Tensor:
        standing = self._standing
        standing.taken = standing.gradients
        y = cast(Normalized, standing.stage).result(True, standing.shortcut)
        return self._become(y) if in_place else y

    def _become(self, y: Tensor) -> Tensor:
        """Stand for another tensor, which this one was changed to in place."""
        standing = self._standing
        standing.numbers, standing.instead = y.detach(), y
        with _no_function():
            if y.requires_grad:
                Become.apply(self, y)
            if standing.version is not None:
                torch.autograd.graph.increment_version(self)
        return y

    def _plus(self, shortcut: Tensor, in_place: bool) -> Tensor:
        standing = self._standing
        if not standing.until_relu or standing.version is None or shortcut.is_inference():
            standing.taken = standing.gradients
            y = cast(Normalized, standing.stage).result(False, shortcut)
            return self._become(y) if in_place else y
        exposed = (*standing.exposed, (shortcut, shortcut._version))
        if in_place:
            standing.shortcut, standing.exposed = shortcut, exposed
            with _no_function():
                if torch.is_grad_enabled():
                    PlusInPlace.apply(self, shortcut)
                torch.autograd.graph.increment_version(self)
                standing.node, standing.version = self.grad_fn, self._version
            return self
        summed = Standing(standing.stage, True, exposed, shortcut)

        def differentiable(make: Callable) -> Tensor:
            return Plus.apply(make, self, shortcut) if torch.is_grad_enabled() else make()

        return self._made(summed, differentiable)

    def _takes(self, other: Any, in_place: bool) -> bool:
        """Say whether another tensor can be added when the numbers are written."""
        standing = self._standing
        x = standing.stage.x
        return (
            type(other) in (Tensor, torch.nn.Parameter)
            and standing.shortcut is None
            and other.layout is torch.strided
            and (other.shape, other.dtype, other.device) == (x.shape, x.dtype, x.device)
            and self._is_normalized(in_place)
        )

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
        with _no_function(), torch.set_grad_enabled(True):
            return Tensor.view_as(self, self)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Take in an addition or a ReLU; hand anything else an ordinary tensor."""
        first = args[0] if args else None
        if func in RELUS or func in ADDITIONS:
            taken = cls._taken_in(func, args, kwargs or {})
            if taken is not None:
                return taken
        if func is torch.autograd.grad:
            return _gradients(func, args, kwargs or {})
        if type(first) is cls and first._standing.instead is None:
            if func in ASKS:
                with _no_function():
                    return func(*args, **(kwargs or {}))
            if func in SEES_GRADIENT or func in CHANGES_HISTORY:
                return first._with_history(func, args, kwargs or {})
            if func in RESHAPES_IN_PLACE:
                first._become_plain()
        args, kwargs = _plain(args), _plain(kwargs or {})
        if all(kind is cls for kind in types):
            with _no_function():
                found = func(*args, **kwargs)
        else:
            found = func(*args, **kwargs)
        # What is done in place returns the tensor that it was done to.
        return first if args and type(first) is cls and found is args[0] else found

    @classmethod
    def _taken_in(cls, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """Return what an addition or a ReLU comes to; None where it does not go with a norm."""
        first, second = (*args, None, None)[:2]
        if func in RELUS:
            in_place = func in RELUS_IN_PLACE or second or kwargs.get("inplace", False)
            if type(first) is not cls or not first._is_normalized(in_place):
                return None
            return first._relu(in_place)
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

    def _is_normalized(self, in_place: bool) -> bool:
        """Say whether it is the output of a norm, maybe with something added, and can go on so."""
        standing = self._standing
        if type(standing.stage) is not Normalized:
            return False
        # Who was given the numbers sees what is done to them in place.
        return not (in_place and standing.numbers is not None) and self._is_intact()

    def _with_history(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Do something to the history of this very tensor, which stays one from then on."""
        if func in SEES_GRADIENT:
            self._check_gradient()
        self._standing.apart = True
        with _no_function():
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
    with _no_function():
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
