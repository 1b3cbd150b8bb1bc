"""A hashable description of a module's structure: equal only if the same is computed."""

import weakref
from collections.abc import Hashable
from types import BuiltinFunctionType, FunctionType, MethodType

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from composer_attn.surgery.attend import is_attended, original_class

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
# State that does not affect which operations a forward runs.
_IGNORED = frozenset({"training", "_parameters", "_buffers", "_modules", "_is_full_backward_hook"})


class _Same:
    """Compares an object by identity, through a weak reference."""

    def __init__(self, value: object):
        self._hash, self._value = id(value), weakref.ref(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        value = self._value()
        return isinstance(other, _Same) and value is not None and value is other._value()


def structure(module: nn.Module) -> Hashable:
    """Return everything a module's forward may depend on, except the values of its tensors.

    That is, its class, shapes of parameters and buffers, plain attributes and, recursively,
    children.
    """
    return _structure(module, {})


def _structure(module: nn.Module, seen: dict[int, int]) -> Hashable:
    if id(module) in seen:
        return seen[id(module)]
    seen[id(module)] = len(seen)
    cls = original_class(module) if is_attended(module) else type(module)
    tensors = (module._parameters, module._buffers)
    own = ((n, v) for n, v in vars(module).items() if n not in _IGNORED and "hook" not in n)
    return (
        (_Same(cls), _hashable(cls.forward, seen)),  # which may be replaced on the class
        is_attended(module),
        tuple((n, None if t is None else _shape(t)) for held in tensors for n, t in held.items()),
        tuple((name, _hashable(value, seen)) for name, value in own),
        tuple(
            (name, None if child is None else _structure(child, seen))
            for name, child in module._modules.items()
        ),
    )


def _hashable(value: object, seen: dict[int, int]) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value  # True is 1, and 1 is 1.0
    if isinstance(value, type | FunctionType):
        return _Same(value)
    if isinstance(value, BuiltinFunctionType):
        return value
    if isinstance(value, Tensor):
        return _shape(value)
    if isinstance(value, nn.Module):
        return _structure(value, seen)
    if isinstance(value, MethodType):
        return _hashable(value.__self__, seen), _Same(value.__func__)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_hashable(item, seen) for item in value)
    if isinstance(value, list | tuple | dict):
        return _container(value, seen)
    try:
        return _Same(value)
    except TypeError:  # it cannot be weakly referenced
        return type(value), repr(value)


def _container(value: list | tuple | dict, seen: dict[int, int]) -> Hashable:
    if id(value) in seen:  # it may hold itself
        return seen[id(value)]
    if not isinstance(value, tuple):
        seen[id(value)] = len(seen)
    items = [x for pair in value.items() for x in pair] if isinstance(value, dict) else value
    return type(value), tuple(_hashable(item, seen) for item in items)


def _shape(tensor: Tensor) -> Hashable:
    shape = None if is_lazy(tensor) else tuple(tensor.shape)
    return shape, tensor.is_floating_point()
