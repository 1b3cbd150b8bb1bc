"""The memory that a forward pass keeps for backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.ops.recompute import ignoring_hooks


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Count the bytes that a forward pass saves for backward: each storage once, no parameters.

    Args:
        model: the network, whose parameters and buffers do not count.
        forward: runs it.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(16, 4)
        >>> saved_bytes(model, lambda: model(x))  # the input, and the output of the ReLU
        768
    """
    own = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        # Detached, because a node that saved its own output would keep itself alive.
        return tensor.detach()

    with ignoring_hooks(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(kept.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
