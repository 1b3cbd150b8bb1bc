"""Copies of modules on the meta device, to be run without changing the originals."""

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from composer_attn.surgery.attend import is_attended, original_class

_MOST_COPIES = 20_000
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


class _Budget(dict):
    """A deepcopy memo with a size limit: a module may refer to its trainer, and so to anything."""

    def __setitem__(self, key: object, value: object) -> None:
        if len(self) > _MOST_COPIES:
            raise ValueError("its attributes are too large to copy")
        super().__setitem__(key, value)


class Shadow:
    """A copy of a module on the meta device: in evaluation mode, unattended, without hooks.

    Whatever its forward sets, appends or counts affects only the copy.

    Attributes:
        module: the copy.
        names: the first name of each of the copy's modules, by module.
    """

    def __init__(self, original: nn.Module):
        self._copies: dict[int, object] = _Budget()
        self.module: nn.Module = self._module(original)
        self.names: dict[nn.Module, str] = {m: name for name, m in self.module.named_modules()}

    def _copy(self, value: object) -> object:
        if id(value) in self._copies:
            return self._copies[id(value)]
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            tensor = self._copies[id(value)] = _meta(value)
            return tensor
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self._copy(value.__self__))
        if isinstance(value, FunctionType | type):
            return value
        if type(value) is list:
            items: list[object] = []
            self._copies[id(value)] = items
            items.extend(self._copy(item) for item in value)
            return items
        if type(value) is tuple:
            return tuple(self._copy(item) for item in value)
        if isinstance(value, dict):
            table = self._copies[id(value)] = copy.copy(value)
            table.update({key: self._copy(item) for key, item in value.items()})
            return table
        return copy.deepcopy(value, self._copies)

    def _module(self, original: nn.Module) -> nn.Module:
        if "forward" in vars(original):
            raise ValueError("its forward was replaced on the instance")
        cls = original_class(original) if is_attended(original) else type(original)
        found: nn.Module = object.__new__(cls)
        self._copies[id(original)] = found
        tables = {
            name: type(value)() if name in _HOOKS else self._copy(value)
            for name, value in vars(original).items()
        }
        vars(found).update(tables, training=False)
        return found


def _meta(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    found = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(found, False) if isinstance(tensor, nn.Parameter) else found


@contextmanager
def no_traces() -> Iterator[None]:
    """Create tensors on the meta device, suspend the caller's modes, preserve random states."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    with ExitStack() as stack:
        # A plan with an example runs the surgery under FakeTensorMode.
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        # For tensors that a forward creates without a device.
        stack.enter_context(torch.device("meta"))
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
