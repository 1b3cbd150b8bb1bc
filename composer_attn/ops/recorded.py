"""What every fused site does at every call, with less overhead than torch's general way.

On small feature maps, and on a GPU that waits for its next kernel, a network's time is that of the
Python between the passes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_Backward = TypeVar("_Backward", bound=Callable)


class Recorded(torch.autograd.Function):
    """An autograd function whose ``apply`` leaves out what does not concern it.

    ``Function.apply`` also looks for a ``setup_context``, which none of ours has, and for dead
    wrappers of functorch among the arguments, which fusion does not accept as feature maps.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the forward, and record it."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]  # in C++


def differentiable_once(backward: _Backward) -> _Backward:
    """Do as ``once_differentiable``, at no cost if the backward itself is not recorded."""
    checked = once_differentiable(backward)

    @wraps(backward)
    def run(ctx, *gradients):
        return (checked if torch.is_grad_enabled() else backward)(ctx, *gradients)

    return run  # type: ignore[return-value]  # of the same signature


def in_full_precision(x: Tensor) -> AbstractContextManager:
    """Disable autocast: on ``(N, C)`` tensors it gains nothing."""
    return _autocast_off(x) or nullcontext()


def _autocast_off(x: Tensor) -> torch.autocast | None:
    """Return what disables autocast; ``None`` if it is not enabled."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else None


class PlainArithmetic:
    """Context for arithmetic on ``(N, C)`` tensors: unrecorded, and without autocast.

    (``torch.no_grad`` and :func:`in_full_precision` in one, and faster.)
    """

    __slots__ = ("_autocast", "_recorded")

    def __init__(self, x: Tensor):
        self._autocast = _autocast_off(x)

    def __enter__(self) -> None:
        self._recorded = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        if self._autocast is not None:
            self._autocast.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._autocast is not None:
            self._autocast.__exit__(kind, error, trace)
        torch._C._set_grad_enabled(self._recorded)
