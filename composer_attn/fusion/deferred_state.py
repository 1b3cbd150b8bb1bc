"""What a deferred tensor stands for, and what autograd knows of it until it is written."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from composer_attn.errors import ModelError
from composer_attn.ops.begun import Begun
from composer_attn.ops.stages import Excited, Normalized

Stage = Excited | Normalized | Begun


class Standing:
    """What a deferred tensor stands for.

    Attributes:
        stage: what is known of it.
        shortcut: what is added to that, if anything.
        until_relu: whether a ReLU is expected after an addition.
        until_attention: whether an attention is expected after an activation.
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
        "apart", "exposed", "gradients", "instead", "node", "numbers", "shortcut",
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
        self.apart = False
        self.taken = False

    def compute(self) -> Tensor:
        """Write the numbers."""
        self.check()
        # Such a tensor can be used where inference mode has ended, or not yet begun.
        with torch.inference_mode(self.version is None):
            if self.shortcut is None:
                return self.stage.values()
            # Nothing is added to an attention before its norm.
            return cast(Normalized | Begun, self.stage).values(shortcut=self.shortcut.detach())

    def is_outdated(self) -> bool:
        """Say whether somebody changed what it is computed from."""
        return any(tensor._version != version for tensor, version in self.exposed)

    def check(self) -> None:
        """Make sure that nobody changed what the numbers are still to be computed from."""
        if self.is_outdated():
            raise ModelError(
                "what a fused norm read, or what was added to its output, was changed in place "
                "before that output was used, which is computed only then: call unfuse_attention"
            )

    def agrees(self) -> bool:
        """Say whether numbers that somebody was given are still those that were written.

        Memory can be written to in ways that no version counts.
        """
        if self.numbers is None:
            self.check()
            return True
        # A GPU that records a graph tells nothing.
        if self.numbers.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        return not self.is_outdated() and torch.equal(self.numbers, self.compute())


class Plus(torch.autograd.Function):
    """The history of a sum that is written later."""

    @staticmethod
    def forward(ctx, make: Callable[[], Tensor], y: Tensor, shortcut: Tensor) -> Tensor:
        """Make what stands for it."""
        return make()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor, Tensor]:
        """Hand it on."""
        return None, d, d


class PlusInPlace(torch.autograd.Function):
    """The history of a tensor to which another was added, to be written later."""

    @staticmethod
    def forward(ctx, y: Tensor, shortcut: Tensor) -> Tensor:
        """Return the tensor itself."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor]:
        """Hand it on."""
        return d, d


class Become(torch.autograd.Function):
    """The history of a tensor that has become another in place."""

    @staticmethod
    def forward(ctx, y: Tensor, other: Tensor) -> Tensor:
        """Return the tensor itself."""
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[None, Tensor]:
        """Hand it on."""
        return None, d


class Alias(torch.autograd.Function):
    """The same numbers, as an ordinary tensor that is no view."""

    @staticmethod
    def forward(ctx, y: Tensor, numbers: Tensor) -> Tensor:
        """Return the numbers, as they are."""
        return numbers.detach()

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, None]:
        """Hand it on."""
        return d, None
