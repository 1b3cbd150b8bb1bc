"""What reaches an attended module's attention: a batch or one sample, of how many channels."""

from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import ModelError

# How many dimensions a batch has, for the modules that also take one sample without a batch.
BATCH_DIMENSIONS = {
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.InstanceNorm1d: 3,
    nn.InstanceNorm2d: 4,
    nn.InstanceNorm3d: 5,
}


def batch_dimensions(module: nn.Module) -> int:
    """Return how many dimensions a batch has for a module, or for the first layer in it.

    0 where nothing in it tells.
    """
    for layer in module.modules():
        for kind, dimensions in BATCH_DIMENSIONS.items():
            if isinstance(layer, kind):
                return dimensions
    return 0


def is_sample(x: Any, dimensions: int) -> bool:
    """Say whether what a module is given is one sample, where a batch has so many dimensions."""
    return dimensions > 0 and isinstance(x, Tensor) and x.dim() == dimensions - 1


def follow_pruning(module: nn.Module, x: Any) -> None:
    """Let an attention follow a module whose channels others have pruned since the surgery.

    Args:
        module: the attended module.
        x: what its attention is given, ``(N, C, *spatial)``.

    Raises:
        ModelError: the attention's layers have another number of channels.
    """
    if not isinstance(x, Tensor) or x.dim() != module._attn_dimensions:
        return
    attention = module._modules["attention"]
    expected, found = getattr(attention, "channels", None), x.shape[1]
    # While torch.jit traces, sizes are tensors, and comparing them would bake in a warning.
    if expected is None or torch.jit.is_tracing() or expected == found:
        return
    follow = getattr(attention, "follow_pruning", None)
    if follow is None or not follow(found):
        raise ModelError(
            f"the attention of this {type(module).__name__.removeprefix('Attended')}, a "
            f"{type(attention).__name__}, rescales {expected} channels, and is given {found}. "
            "Where channels are pruned after the surgery, prune the attention's layers with them "
            "(of a SqueezeExcitation the columns of fc1.weight and the rows of fc2.weight and "
            "fc2.bias); or prune before the surgery"
        )
