"""Trace a module's own forward by torch.fx, with children as leaves and without side effects.

While it runs, ``torch.fx.Tracer.trace`` replaces ``nn.Module.__call__`` for the whole process,
including other threads. Here a copy of the module is called, whose children record their calls;
whatever the forward sets, appends, counts or draws at random affects only that copy.
"""

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from composer_attn.surgery.attend import is_attended, original_class

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)


def trace_children(module: nn.Module, training: bool) -> fx.Graph:
    """Trace a module's own forward, with its children as leaves and without side effects.

    Raises:
        Exception: whatever the forward raises on symbolic inputs, if it cannot be traced.
    """
    guard = _NothingChanges()
    with _same_random_numbers(guard), guard:
        return _Shallow().traced(module, training, guard)


class _Shallow(fx.Tracer):
    """Traces only a module's own forward."""

    def traced(self, module: nn.Module, training: bool, guard: "_NothingChanges") -> fx.Graph:
        """Return the graph of a module's forward."""
        root = self._copy(module, "", {}, guard)
        vars(root)["training"] = training
        self.root, self.root_module_name = root, type(root).__name__
        self.graph, self.tensor_attrs = fx.Graph(tracer_cls=type(self)), {}
        forward, inputs = self.create_args_for_root(type(root).forward, is_module=True)
        output = self.create_arg(forward(*inputs))
        self.create_node("output", "output", (output,), {})
        return self.graph

    def _copy(
        self, module: nn.Module, path: str, memo: dict[int, Any], guard: "_NothingChanges"
    ) -> nn.Module:
        """Copy a module and its descendants, which record calls instead of computing."""
        if id(module) in memo:
            return memo[id(module)]
        kind = original_class(module) if is_attended(module) and not path else type(module)
        copy = memo[id(module)] = object.__new__(kind)
        tables = {name: _copied(value, memo) for name, value in vars(module).items()}
        tables["_modules"] = {
            name: child and self._copy(child, f"{path}.{name}" if path else name, memo, guard)
            for name, child in module._modules.items()
        }
        if path:
            # If set, nn.Module calls this instead of forward.
            tables["_compiled_call_impl"] = self._recorder(path)
        else:
            # Cloned, so that a forward that counts calls in a buffer changes only the clone.
            tables["_buffers"] = guard.cloned(module._buffers)
        vars(copy).update(tables)
        return copy

    def _recorder(self, path: str) -> Callable:
        return lambda *args, **kwargs: self.create_proxy("call_module", path, args, kwargs)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy containers and plain Python objects, to which a forward may write."""
    if id(value) in memo:
        return memo[id(value)]
    copy = value
    if type(value) in (list, set, deque):
        copy = memo[id(value)] = type(value)()
        add = copy.add if type(value) is set else copy.append
        for each in value:
            add(_copied(each, memo))
    elif type(value) in _CONTAINERS:
        copy = memo[id(value)] = value.copy()
        for name, each in value.items():
            copy[name] = _copied(each, memo)
    elif _is_plain_object(value):
        copy = memo[id(value)] = object.__new__(type(value))
        vars(copy).update({name: _copied(each, memo) for name, each in vars(value).items()})
    return copy


def _is_plain_object(value: Any) -> bool:
    """Return whether a value is a plain Python object, whose state is its ``__dict__`` alone."""
    kind = type(value)
    return (
        kind.__module__.split(".")[0] not in ("torch", "builtins", "functools")
        and kind.__new__ is object.__new__
        and hasattr(value, "__dict__")
        and not isinstance(value, (type, nn.Module, Tensor))
        and not any("__slots__" in vars(cls) for cls in kind.__mro__[:-1])
    )


class _NothingChanges(TorchDispatchMode):
    """Rejects in-place operations on tensors that existed before, in this thread.

    Attributes:
        drew: whether random numbers were drawn.
    """

    def __init__(self):
        super().__init__()
        self.drew = False
        self._own: dict[int, Any] = {}

    def cloned(self, buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Clone buffers, so that the forward may change them."""
        return {name: None if b is None else b.clone() for name, b in buffers.items()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation, and record the storages that it allocates."""
        kwargs = kwargs or {}
        self.drew |= torch.Tag.nondeterministic_seeded in func.tags
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                if isinstance(value, Tensor) and _memory(value) not in self._own:
                    raise ValueError(f"its forward changes a tensor in place ({func})")
        found = func(*args, **kwargs)
        for value in found if isinstance(found, (list, tuple)) else (found,):
            if isinstance(value, Tensor) and not _is_view(func):
                # Kept alive, so that no other storage gets the same address.
                self._own[_memory(value)] = value
        return found


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_view(func: Any) -> bool:
    return any(each.alias_info is not None for each in func._schema.returns)


@contextmanager
def _same_random_numbers(guard: _NothingChanges) -> Iterator[None]:
    """Restore the random states on exit."""
    numpy, state = sys.modules.get("numpy"), torch.get_rng_state()
    others = [(random.getstate, random.setstate)]
    if numpy is not None:
        others.append((numpy.random.get_state, numpy.random.set_state))
    before = [get() for get, _ in others]
    try:
        yield
    finally:
        # Only if this trace drew any: another thread may be drawing, too.
        if guard.drew:
            torch.set_rng_state(state)
        for (get, restore), old in zip(others, before, strict=True):
            if not _same(get(), old):
                restore(old)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    return a.tolist() == b.tolist() if hasattr(a, "tolist") else a == b
