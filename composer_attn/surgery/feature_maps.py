"""The inputs of an attended module: batched or a single sample, and their channel count."""

from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import ModelError

# Dimensions of a batched input, for modules that also accept a single unbatched sample.
BATCH_DIMENSIONS = {
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.InstanceNorm1d: 3,
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}


def batch_dimensions(module: nn.Module) -> int:
    """Return the dimensions of a batched input, by the first layer that determines them, or 0."""
    for layer in module.modules():
        for kind, dimensions in BATCH_DIMENSIONS.items():
            if isinstance(layer, kind):
                return dimensions
    return 0


def is_sample(x: Any, dimensions: int) -> bool:
    """Return whether ``x`` is an unbatched sample, given the dimensions of a batched input."""
    return dimensions > 0 and isinstance(x, Tensor) and x.dim() == dimensions - 1


def follow_pruning(module: nn.Module, x: Any) -> None:
    """Adapt an attention to a module whose channels were pruned after the surgery.

    Args:
        module: the attended module.
        x: the input of its attention, ``(N, C, *spatial)``.

    Raises:
        ModelError: the attention's layers have a different number of channels.
    """
    if not isinstance(x, Tensor) or x.dim() != module._attn_dimensions:
        return
    attention = module._modules["attention"]
    expected, found = getattr(attention, "channels", None), x.shape[1]
    # Under torch.jit.trace sizes are tensors, and comparing them emits a TracerWarning.
    if expected is None or torch.jit.is_tracing() or expected == found:
        return
    follow = getattr(attention, "follow_pruning", None)
    if follow is None or not follow(found):
        raise ModelError(
            f"the attention of this {type(module).__name__.removeprefix('Attended')}, a "
            f"{type(attention).__name__}, rescales {expected} channels, but is given {found}. "
            "Where channels are pruned after the surgery, prune the attention's layers with them "
            "(of a SqueezeExcitation the columns of fc1.weight and the rows of fc2.weight and "
            "fc2.bias); or prune before the surgery"
        )
