"""The output of a norm, put off until it is known what is added to it and whether a ReLU follows.

At the end of a residual branch stand a norm, the addition of the shortcut and a ReLU, the last two
written in the forward of a module that is not ours. So the norm returns a tensor that is not
computed yet, which takes in the addition and the ReLU that it meets (through torch's own
``__torch_function__``), and computes all three in one pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ADDITIONS_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
_ADDITIONS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, *_ADDITIONS_IN_PLACE}
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}

_EMPTY = torch.empty(0)

Compute = Callable[[bool, Tensor | None], Tensor]


class Deferred(Tensor):
    """Stands for ``compute(relu, shortcut)``; whatever else is done with it computes it first.

    Its own storage is empty: what would read it past ``__torch_function__`` finds no numbers there
    to take for the result.
    """

    @classmethod
    def of(cls, like: Tensor, compute: Compute, until_relu: bool) -> "Deferred":
        """Put off a computation.

        Args:
            like: a tensor of the shape and dtype of the result.
            compute: called once, with whether a ReLU ends it and with what is added before.
            until_relu: whether a ReLU is still to come after an addition.
        """
        made = _EMPTY.as_subclass(cls)
        vars(made).update(
            _like=(like.shape, like.dtype),
            _compute=compute,
            _until_relu=until_relu,
            _shortcut=None,
            # A forward may switch gradients off for a part of what it does.
            _gradients=torch.is_grad_enabled(),
        )
        return made

    def result(self, relu: bool = False) -> Tensor:
        """Compute it."""
        fields = vars(self)
        if "_result" not in fields:
            compute, shortcut = fields.pop("_compute"), fields.pop("_shortcut")
            with torch.set_grad_enabled(fields["_gradients"]):
                fields["_result"] = compute(relu, shortcut)
        return fields["_result"]

    def plus(self, shortcut: Tensor) -> Tensor:
        """Add what has the same shape and dtype."""
        fields = vars(self)
        fields["_shortcut"] = shortcut
        return self if fields["_until_relu"] else self.result()

    def _waits(self) -> bool:
        fields = vars(self)
        return "_result" not in fields and fields["_gradients"] == torch.is_grad_enabled()

    def _takes(self, other: Any) -> bool:
        fields = vars(self)
        return (
            type(other) in (Tensor, torch.nn.Parameter)
            and self._waits()
            and fields["_shortcut"] is None
            and (other.shape, other.dtype) == fields["_like"]
        )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Take in an addition or a ReLU; compute before anything else."""
        first = args[0] if args else None
        if func in _RELUS and isinstance(first, cls) and first._waits():
            return first.result(relu=True)
        if func in _ADDITIONS and len(args) == 2 and not kwargs:
            second = args[1]
            if isinstance(first, cls) and first._takes(second):
                return first.plus(second)
            # Not what is added to in place, which others may hold.
            if func not in _ADDITIONS_IN_PLACE and isinstance(second, cls) and second._takes(first):
                return second.plus(first)
        return func(*_computed(args), **_computed(kwargs or {}))


def _computed(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.result()
    if isinstance(value, dict):
        return {name: _computed(each) for name, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_computed(each) for each in value)
    return value
