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
from typing import Any

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.ops.stages import Excited, Normalized
from composer_attn.surgery.tensor_functions import (
    ADDITIONS,
    ADDITIONS_IN_PLACE,
    ASKS,
    CHANGES_HISTORY,
    RELUS,
    RELUS_IN_PLACE,
    RESHAPES_IN_PLACE,
    SEES_GRADIENT,
)

Stage = Excited | Normalized

_no_function = torch._C.DisableTorchFunctionSubclass
# Of two threads that need numbers, one computes them.
_lock = threading.RLock()


class _Standing:
    """What a deferred tensor stands for.

    Attributes:
        stage: what is known of it.
        shortcut: what is added to that, if anything.
        until_relu: whether a ReLU is expected after an addition.
        exposed: tensors that it is computed from and others hold, and their versions.
        gradients: whether gradients were recorded when it was made.
        node: its history, as it was made.
        version: of changes in place, as it was made; ``None`` in inference mode, which counts none.
        numbers: once they are there, detached.
        instead: the tensor that it has become, once something in place gave it another.
        apart: whether nobody may take it apart.
        taken: whether someone did, whose gradient does not pass through it.
    """

    __slots__ = (
        "apart", "exposed", "gradients", "instead", "node", "numbers", "shortcut", "stage",
        "taken", "until_relu", "version",
    )  # fmt: skip

    def __init__(self, stage: Stage, until_relu: bool, exposed: tuple, shortcut: Tensor | None):
        self.stage = stage
        self.until_relu = until_relu
        self.shortcut = shortcut
        self.exposed = exposed
        self.gradients = torch.is_grad_enabled()
        self.numbers: Tensor | None = None
        self.instead: Tensor | None = None
        self.apart = False
        self.taken = False

    def compute(self) -> Tensor:
        """Write the numbers."""
        self.check()
        # Such a tensor can be used where inference mode has ended, or not yet begun.
        with torch.inference_mode(self.version is None):
            if self.shortcut is None:
                return self.stage.values()
            return self.stage.values(shortcut=self.shortcut.detach())

    def check(self) -> None:
        """Make sure that nobody changed what the numbers are still to be computed from."""
        for tensor, version in self.exposed:
            if tensor._version != version:
                raise ModelError(
                    "what a fused norm read, or what was added to its output, was changed in place "
                    "before that output was used, which is computed only then: call "
                    "unfuse_attention"
                )


class Deferred(Tensor):
    """The attended output of a module, the output of a norm, or a sum: see the module."""

    _standing: _Standing

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
        standing = _Standing(stage, until_relu, versions, None)
        return cls._made(standing, stage.result)

    @classmethod
    def _made(cls, standing: _Standing, differentiable: Callable) -> "Deferred":
        x = standing.stage.x

        def make() -> Tensor:
            made = Tensor._make_wrapper_subclass(
                cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
            )
            made._standing = standing
            return made

        made = differentiable(make=make)
        with _no_function():
            standing.node = made.grad_fn
            standing.version = None if made.is_inference() else made._version
        return made

    def taken_apart(self, kind: type[Stage]) -> Stage | None:
        """Return the stage it stands for; None where it is of another kind, or not just that."""
        standing = self._standing
        if type(standing.stage) is not kind or standing.shortcut is not None:
            return None
        if not self._is_intact():
            return None
        standing.taken = standing.gradients
        return standing.stage

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
        if standing.numbers is None:
            standing.check()
            return True
        # Who was given them may have written to them in a way that is not counted.
        if standing.numbers.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        if any(tensor._version != version for tensor, version in standing.exposed):
            return False
        return torch.equal(standing.numbers, standing.compute())

    def _relu(self, in_place: bool) -> Tensor:
        standing = self._standing
        standing.taken = standing.gradients
        y = standing.stage.result(True, standing.shortcut)
        return self._become(y) if in_place else y

    def _become(self, y: Tensor) -> Tensor:
        """Stand for another tensor, which this one was changed to in place."""
        standing = self._standing
        standing.numbers, standing.instead = y.detach(), y
        if y.requires_grad:
            _Become.apply(self, y)
        with _no_function():
            if standing.version is not None:
                torch.autograd.graph.increment_version(self)
        return y

    def _plus(self, shortcut: Tensor, in_place: bool) -> Tensor:
        standing = self._standing
        if not standing.until_relu or standing.version is None or shortcut.is_inference():
            standing.taken = standing.gradients
            y = standing.stage.result(False, shortcut)
            return self._become(y) if in_place else y
        exposed = (*standing.exposed, (shortcut, shortcut._version))
        if in_place:
            standing.shortcut, standing.exposed = shortcut, exposed
            if torch.is_grad_enabled():
                _PlusInPlace.apply(self, shortcut)
            with _no_function():
                torch.autograd.graph.increment_version(self)
                standing.node, standing.version = self.grad_fn, self._version
            return self
        summed = _Standing(standing.stage, True, exposed, shortcut)

        def differentiable(make: Callable) -> Tensor:
            return _Plus.apply(make, self, shortcut) if torch.is_grad_enabled() else make()

        return self._made(summed, differentiable)

    def _takes(self, other: Any) -> bool:
        standing = self._standing
        return (
            type(other) in (Tensor, torch.nn.Parameter)
            and type(standing.stage) is Normalized
            and standing.shortcut is None
            and other.layout is torch.strided
            and (other.shape, other.dtype) == (standing.stage.x.shape, standing.stage.x.dtype)
            and other.device == standing.stage.x.device
            and self._is_intact()
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
        if func in RELUS and type(first) is cls and first._is_normalized():
            inplace = kwargs.get("inplace", False) if kwargs else False
            in_place = func in RELUS_IN_PLACE or inplace or args[1:] == (True,)
            if not in_place or first._standing.numbers is None:
                return first._relu(in_place)
        if func in ADDITIONS and len(args) == 2 and not kwargs:
            second, in_place = args[1], func in ADDITIONS_IN_PLACE
            if type(first) is cls and first._takes(second):
                # Who was given the numbers sees what is done to them in place.
                if not in_place or first._standing.numbers is None:
                    return first._plus(second, in_place)
            # Not what is added to in place, which others may hold.
            if not in_place and type(second) is cls and second._takes(first):
                return second._plus(first, False)
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
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute on the numbers; what is changed in place is the tensor itself."""
        seen: list[Deferred] = []

        def numbers(value: Any) -> Any:
            if isinstance(value, cls):
                seen.append(value)
                return value._numbers()
            if isinstance(value, (list, tuple)):
                return type(value)(map(numbers, value))
            return value

        given = [numbers(value) for value in args]
        named = {name: numbers(value) for name, value in (kwargs or {}).items()}
        found = func(*given, **named)
        for tensor in seen:
            if found is tensor._standing.numbers:
                return tensor
        return found

    def _is_normalized(self) -> bool:
        return type(self._standing.stage) is Normalized and self._is_intact()

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
                "the gradient of this tensor is not computed: a norm, or a ReLU, that is fused with "
                "what puts it out has used it. Ask for it (retain_grad, register_hook) before, or "
                "call unfuse_attention"
            )

    def _become_plain(self) -> None:
        """Go on as an ordinary tensor, whose shape, say, can change."""
        with torch.set_grad_enabled(True):
            self._standing.instead = _Alias.apply(self)


class _Plus(torch.autograd.Function):
    """The history of a sum that is written later."""

    @staticmethod
    def forward(ctx, make: Callable[[], Tensor], y: Tensor, shortcut: Tensor) -> Tensor:
        return make()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, d, d


class _PlusInPlace(torch.autograd.Function):
    """The history of a tensor to which another was added, to be written later."""

    @staticmethod
    def forward(ctx, y: Tensor, shortcut: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor]:
        return d, d


class _Become(torch.autograd.Function):
    """The history of a tensor that has become another in place."""

    @staticmethod
    def forward(ctx, y: Tensor, other: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor]:
        return None, d


class _Alias(torch.autograd.Function):
    """The same numbers, as an ordinary tensor that is no view."""

    @staticmethod
    def forward(ctx, y: Deferred) -> Tensor:
        return y._numbers().detach()

    @staticmethod
    def backward(ctx, d: Tensor) -> Tensor:
        return d


def _gradients(func: Callable, args: tuple, kwargs: dict) -> Any:
    inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
    for each in (inputs,) if isinstance(inputs, Tensor) else inputs:
        if type(each) is Deferred:
            each._check_gradient()
    with _no_function():
        return func(*args, **kwargs)


def _plain(value: Any) -> Any:
    if type(value) is Deferred:
        return value._plain()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_plain(each) for each in value)
    return value
