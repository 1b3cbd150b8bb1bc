"""The state of a deferred tensor, and the autograd functions that record its history."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.ops.pending_output import PendingOutput
from composer_attn.ops.pending_region import PendingRegion
from composer_attn.ops.recorded import Recorded
from composer_attn.ops.region_sites import PendingSite
from composer_attn.ops.sites import ExcitedSite, NormalizedSite
from composer_attn.ops.stages import Excited, Normalized

Finishing = Normalized | NormalizedSite | PendingOutput | PendingRegion | PendingSite
Stage = Excited | ExcitedSite | Finishing


class DeferredState:
    """The state of a deferred tensor.

    Attributes:
        stage: the pending computation that produces its values.
        shortcut: the tensor to be added to them, if any.
        until_relu: whether a ReLU is expected after an addition.
        until_attention: whether an attention is expected after an activation.
        exposed: inputs of the computation that may be held elsewhere, with their version counters.
        gradients: whether grad mode was enabled when it was created.
        node: its ``grad_fn`` at creation.
        version: its version counter at creation; ``None`` in inference mode, which has none.
        numbers: its values once computed, detached.
        instead: the tensor that replaced it after an in-place operation.
        is_final: whether further fusion is ruled out.
        taken: whether it was fused further, so that its gradient does not pass through it.
    """

    __slots__ = (
        "exposed", "gradients", "instead", "is_final", "node", "numbers", "shortcut",
        "stage", "taken", "until_attention", "until_relu", "version",
    )  # fmt: skip

    node: Any
    version: int | None

    def __init__(
        self,
        stage: Stage,
        until_relu: bool,
        exposed: tuple[tuple[Tensor, int], ...],
        shortcut: Tensor | None = None,
        until_attention: bool = False,
    ):
        self.stage = stage
        self.until_relu = until_relu
        self.until_attention = until_attention
        self.shortcut = shortcut
        self.exposed = exposed
        self.gradients = torch.is_grad_enabled()
        self.numbers: Tensor | None = None
        self.instead: Tensor | None = None
        self.is_final = False
        self.taken = False

    def compute(self) -> Tensor:
        """Compute the values, without gradients."""
        self.check()
        # The tensor may be used after inference mode has ended, or before it begins.
        with torch.inference_mode(self.version is None):
            if self.shortcut is None:
                return self.stage.values()
            # Nothing is added to an attention's output before its norm.
            return cast(Finishing, self.stage).values(shortcut=self.shortcut.detach())

    def is_outdated(self) -> bool:
        """Return whether an input was changed in place since."""
        return any(tensor._version != version for tensor, version in self.exposed)

    def check(self) -> None:
        """Raise if an input of values not computed yet was changed in place."""
        if self.is_outdated():
            raise ModelError(
                "the input of a fused norm, or a tensor added to its output, was changed in place "
                "before that output was computed, at its first use: call unfuse_attention"
            )

    def agrees(self) -> bool:
        """Return whether values already handed out are still those that were computed.

        Memory can be written to without any version counter being incremented.
        """
        if self.numbers is None:
            self.check()
            return True
        # Values cannot be compared while a CUDA graph is being captured.
        if self.numbers.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        return not self.is_outdated() and torch.equal(self.numbers, self.compute())


class DeferredAddition(Recorded):
    """Autograd node of a sum that is computed lazily."""

    @staticmethod
    def forward(ctx, make: Callable[[], Tensor], y: Tensor, shortcut: Tensor) -> Tensor:
        """Create the deferred tensor."""
        return make()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor, Tensor]:
        """Pass the gradient to both operands."""
        return None, d, d


class DeferredInPlaceAddition(Recorded):
    """Autograd node of an in-place sum that is computed lazily."""

    @staticmethod
    def forward(ctx, y: Tensor, shortcut: Tensor) -> Tensor:
        """Return the tensor itself."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor]:
        """Pass the gradient to both operands."""
        return d, d


class InPlaceReplacement(Recorded):
    """Autograd node of a tensor whose values were replaced in place by those of another."""

    @staticmethod
    def forward(ctx, y: Tensor, other: Tensor) -> Tensor:
        """Return the tensor itself."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor]:
        """Pass the gradient to the other tensor."""
        return None, d


class Alias(Recorded):
    """Autograd node of an ordinary, non-view tensor with the values of a deferred one."""

    @staticmethod
    def forward(ctx, y: Tensor, numbers: Tensor) -> Tensor:
        """Return the values unchanged."""
        return numbers.detach()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on unchanged."""
        return d, None
