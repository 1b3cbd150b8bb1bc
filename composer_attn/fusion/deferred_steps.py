"""How the computation of a deferred tensor continues: an activation, an addition, or a fusion.

For its behaviour as an ordinary tensor see :mod:`composer_attn.fusion.deferred_tensor`.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from typing_extensions import Self

from composer_attn.fusion.deferred_state import (
    DeferredAddition,
    DeferredInPlaceAddition,
    DeferredState,
    Finishing,
    InPlaceReplacement,
    Stage,
)
from composer_attn.ops.activations import RELU, Activation
from composer_attn.ops.pending_output import PendingOutput
from composer_attn.ops.pending_region import PendingRegion
from composer_attn.ops.region_sites import PendingSite

_Kind = TypeVar("_Kind", bound=Stage)
# A tuple, not a union, which takes longer.
_REGIONS = (PendingRegion, PendingSite, PendingOutput)
no_function = torch._C.DisableTorchFunctionSubclass


class Continuable(Tensor):
    """A tensor that represents a pending computation, which other operations can extend."""

    _state: DeferredState

    @classmethod
    def of(
        cls,
        stage: Stage,
        until_relu: bool = False,
        exposed: tuple[Tensor, ...] = (),
        until_attention: bool = False,
    ) -> Self:
        """Create the deferred output of a stage.

        Args:
            stage: an attention or a norm, computed up to its output feature map.
            until_relu: whether a ReLU is expected after an addition.
            exposed: inputs of the computation that may be held elsewhere.
            until_attention: whether an attention is expected after an activation.
        """
        versions = tuple([(tensor, tensor._version) for tensor in exposed]) if exposed else ()
        state = DeferredState(stage, until_relu, versions, until_attention=until_attention)
        return cls._made(state, stage.result)

    @classmethod
    def _made(cls, state: DeferredState, differentiable: Callable) -> Self:
        x = state.stage.x

        def make() -> Tensor:
            made = cls._make_wrapper_subclass(  # type: ignore[attr-defined]  # not in torch's stubs
                cls, x.shape, strides=x.stride(), dtype=x.dtype, device=x.device
            )
            made._state = state
            return made

        made = differentiable(make=make)
        with no_function():
            state.node = made.grad_fn
            state.version = None if made.is_inference() else made._version
        return made

    def take_stage(self, *kinds: type[_Kind]) -> _Kind | None:
        """Return its stage to be fused further; None if of another kind, added to, or changed."""
        state = self._state
        stage = state.stage
        if type(stage) not in kinds or state.shortcut is not None:
            return None
        if not self._is_intact():
            return None
        state.taken = state.gradients
        return cast(_Kind, stage)

    @property
    def stage(self) -> Stage:
        """The stage that it represents, or represented."""
        return self._state.stage

    def exposed(self) -> tuple[Tensor, ...]:
        """Return the inputs of the computation that may be held elsewhere."""
        return tuple(tensor for tensor, _ in self._state.exposed)

    def _is_intact(self) -> bool:
        """Return whether it is unchanged since creation, under the same grad mode."""
        state = self._state
        if state.is_final or state.instead is not None:
            return False
        if state.gradients != torch.is_grad_enabled():
            return False
        with no_function():
            if self.grad_fn is not state.node:
                return False
            if state.version is not None and self._version != state.version:
                return False
        return state.agrees()

    def _activated(self, activation: Activation, in_place: bool) -> Tensor:
        state = self._state
        state.taken = state.gradients
        stage = cast(Finishing, state.stage)
        if isinstance(stage, _REGIONS) and state.until_attention and state.shortcut is None:
            later = stage.activated(activation)
            if not in_place:
                until = DeferredState(later, state.until_relu, state.exposed, None, True)
                return self._made(until, later.result)
            return self._become_later(later)
        y = stage.ended_in(activation, state.shortcut)
        return self._become(y) if in_place else y

    def _become_later(self, later: PendingRegion | PendingSite) -> Tensor:
        """Represent the stage that follows, after an in-place operation on this tensor."""
        state = self._state
        state.stage, state.taken = later, False
        with no_function():
            if torch.is_grad_enabled():
                later.become(self)
            if state.version is not None:
                torch.autograd.graph.increment_version(self)
                state.version = self._version
            state.node = self.grad_fn
        return self

    def _become(self, y: Tensor) -> Tensor:
        """Take the values and history of ``y``, the result of an in-place operation on this one."""
        state = self._state
        state.numbers, state.instead = y.detach(), y
        with no_function():
            if y.requires_grad:
                InPlaceReplacement.apply(self, y)
            if state.version is not None:
                torch.autograd.graph.increment_version(self)
        return y

    def _plus(self, shortcut: Tensor, in_place: bool) -> Tensor:
        state = self._state
        if not state.until_relu or state.version is None or shortcut.is_inference():
            state.taken = state.gradients
            y = cast(Finishing, state.stage).result(False, shortcut)
            return self._become(y) if in_place else y
        exposed = (*state.exposed, (shortcut, shortcut._version))
        if in_place:
            state.shortcut, state.exposed = shortcut, exposed
            with no_function():
                if torch.is_grad_enabled():
                    DeferredInPlaceAddition.apply(self, shortcut)
                torch.autograd.graph.increment_version(self)
                state.node, state.version = self.grad_fn, self._version
            return self
        summed = DeferredState(state.stage, True, exposed, shortcut)

        def differentiable(make: Callable) -> Tensor:
            return (
                DeferredAddition.apply(make, self, shortcut) if torch.is_grad_enabled() else make()
            )

        return self._made(summed, differentiable)

    def _takes(self, other: Any, in_place: bool) -> bool:
        """Return whether the addition of another tensor can be deferred."""
        state = self._state
        x = state.stage.x
        return (
            type(other) in (Tensor, torch.nn.Parameter)
            and state.shortcut is None
            and getattr(state.stage, "can_be_added_to", False)
            and other.layout is torch.strided
            and (other.shape, other.dtype, other.device) == (x.shape, x.dtype, x.device)
            and self._can_go_on(in_place)
        )

    def _can_be_activated(self, activation: Activation, in_place: bool) -> bool:
        """Return whether an activation can be fused: on a norm's output, or a ReLU on a sum."""
        state = self._state
        if state.shortcut is not None:
            return activation == RELU and self._can_go_on(in_place)
        return getattr(state.stage, "is_normalized", False) and self._can_go_on(in_place)

    def _can_go_on(self, in_place: bool) -> bool:
        """Return whether an operation on it can be fused."""
        state = self._state
        # Values already handed out must reflect in-place operations.
        return not (in_place and state.numbers is not None) and self._is_intact()
