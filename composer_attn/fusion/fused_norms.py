"""Classes of norms that are computed jointly with attention.

Like an attended module (:mod:`composer_attn.surgery.attend`), a fused module is the same object as
before, with a class that extends its original class.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.attention.base import ChannelAttention
from composer_attn.errors import ModelError
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.handoff import (
    ExpectedEpilogue,
    Link,
    Producer,
    can_be_fused,
    has_hooks_before,
    has_watched_layers,
    is_watched,
    keeps_versions,
    needs_plain_operations,
)
from composer_attn.ops import attend_then_normalize, normalize_then_attend
from composer_attn.ops.backends.layout import is_dense_map
from composer_attn.ops.fused import joinable
from composer_attn.ops.module_calls import keeping
from composer_attn.ops.norm_kinds import BATCH_NORMS
from composer_attn.ops.normalization import uses_batch
from composer_attn.ops.sites import ExcitedSite, NormalizedSite
from composer_attn.ops.stages import Excited, Normalized, normalize
from composer_attn.surgery.attend import building, set_class, staying
from composer_attn.surgery.folding import refuse_fuse_modules

_fused_classes: "WeakValueDictionary[tuple[type, type], type[FusedModule]]" = WeakValueDictionary()


# Type checkers see the mixins as a module or a batch norm; at run time the original class is both.
if TYPE_CHECKING:
    _Module = nn.Module
    _Norm = _BatchNorm
else:
    _Module = _Norm = object


class FusedModule(_Module):
    """Mixin for every module that takes part in a joint computation."""

    _attn_role: "type[FusedModule]"

    def __reduce_ex__(self, protocol):
        # As in Attends: the class has no importable name.
        make, args, *state = super().__reduce_ex__(max(protocol, 2))
        args = tuple(unfused_class(self) if arg is type(self) else arg for arg in args)
        return _make_fused, (make, args, role_of(self)), *state

    def __prepare_scriptable__(self):
        raise ModelError(
            "torch.jit.script cannot compile fused modules: use torch.jit.trace or torch.export, "
            "or call unfuse_attention first"
        )


class FusedNorm(FusedModule, _Norm):
    """Mixin for norms that take part in a joint computation."""

    _attn_takes: Link | None = None
    _attn_ends: ExpectedEpilogue | None = None

    def _finished(
        self, normalized: Normalized | NormalizedSite, exposed: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the output, deferred if an addition or activation is expected to follow."""
        ends = self._attn_ends
        if ends is None or not all(map(keeps_versions, exposed)):
            return normalized.result()
        return Deferred.of(normalized, ends.until_relu, exposed)


class AttendedNorm(FusedNorm):
    """An attended norm: computes ``attention(norm(x))`` jointly."""

    attention: ChannelAttention  # no other attention is fused
    _attn_fused: Producer  # set when it is fused

    def forward(self, input: Tensor) -> Tensor:
        """Normalize and attend."""
        if not self._may_join(input):
            return super().forward(input)
        if torch.compiler.is_compiling():
            return normalize_then_attend(input, self.attention, self, self._attn_fused.backend)
        watched = has_watched_layers(self.attention)

        def joint(_: Tensor | None = None) -> Tensor:
            normalized = normalize(input, self.attention, self, self._attn_fused.backend, watched)
            return self._finished(normalized, (input,))

        if not is_watched(self.attention):
            return joint()
        with keeping():
            alone = self._without_attention(input)
        return self.attention(alone, begin=joint)

    def _without_attention(self, x: Tensor) -> Tensor:
        """Return the attention's input, for its hooks, without updating running statistics."""
        batch = uses_batch(self)
        mean, variance = (None, None) if batch else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, variance, self.weight, self.bias, batch, 0, self.eps)

    def _may_join(self, x: Tensor) -> bool:
        if needs_plain_operations() or not isinstance(x, Tensor):
            return False
        if not torch.compiler.is_compiling() and not is_dense_map(x):
            return False
        # Forward pre-hooks may change the input.
        if has_hooks_before(self.attention) or not can_be_fused(self.attention):
            return False
        # Hooks see the attention's input, which only a batch norm's arithmetic gives here.
        if is_watched(self.attention) and not isinstance(self, BATCH_NORMS):
            return False
        # An input that the backends do not support would be passed back to this module.
        return joinable(x, self.attention, self)


class NextNorm(FusedNorm):
    """The norm after an attended module: computes ``norm(attention(x))`` jointly."""

    _attn_takes: Link  # set when it is fused

    def forward(self, input: Tensor) -> Tensor:
        """Normalize the input, which may be a deferred attended output."""
        if torch.compiler.is_compiling():
            found = self._attn_takes.take(input)
            if found is None or not isinstance(self, BATCH_NORMS):
                return super().forward(input)
            x, producer = found
            # Fusion has set a backend, and fuses only this package's attention.
            attention: Any = producer.attention
            backend = cast(Producer, producer._attn_fused).backend
            return attend_then_normalize(x, attention, self, backend)
        if type(input) is Deferred:
            excited: Any = input.take_stage(Excited, ExcitedSite)
            if excited is not None:
                normalized = self._attn_takes.normalized(excited, self)
                if normalized is not None:
                    return self._finished(normalized, input.exposed())
        return super().forward(input)


def fused_class(original: type[nn.Module], role: type[FusedModule]) -> type[FusedModule]:
    """Return the class that extends ``original`` by a role, cached per pair."""
    found = _fused_classes.get((original, role))
    if found is None:
        attributes: dict[str, Any] = {
            "__module__": original.__module__,
            "_attn_role": role,
            "__init__": building(original, unfused_class),
            "forward": staying(role, one_input=issubclass(role, FusedNorm)),
        }
        made = type(f"Fused{original.__name__}", (role, original), attributes)
        found = cast(type[FusedModule], made)  # its first base is a FusedModule
        _fused_classes[original, role] = found
        refuse_fuse_modules(found, original)
    return found


def _make_fused(make: Callable, args: tuple, role: type[FusedModule]):
    module = make(*args)
    set_class(module, fused_class(type(module), role))
    return module


def is_fused(module: nn.Module) -> bool:
    """Return whether a module takes part in a joint computation, by its class."""
    return isinstance(module, FusedModule)


def role_of(module: nn.Module) -> type[FusedModule]:
    """Return the role of a fused module."""
    return cast(type[FusedModule], type(module))._attn_role


def unfused_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a fused module had before it was fused."""
    mro = type(module).__mro__
    return mro[mro.index(FusedModule) + 1]
