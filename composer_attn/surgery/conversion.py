"""Move modules to a device and dtype, also while their tensors are fake."""

from typing import Any

import torch
from torch import Tensor, nn


def convert(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Return ``module.to(device, dtype)``, which works under ``FakeTensorMode`` as well.

    There, ``Module.to`` swaps parameters in place, which torch 2.14 refuses for those that anything
    refers to weakly, as fake tensor modes do. Parameters that differ are replaced here instead.

    Example:
        >>> convert(nn.Linear(2, 3), "cpu", torch.float64).weight.dtype
        torch.float64
    """
    if not is_fake():
        return module.to(device, dtype)
    replaced: dict[int, Tensor] = {}  # shared tensors stay shared
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = replaced.setdefault(id(tensor), _converted(tensor, device, dtype))
    return module


def _converted(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    of_numbers = tensor.is_floating_point() or tensor.is_complex()
    found = tensor.detach().to(device, dtype if of_numbers else tensor.dtype)
    if (found.device, found.dtype) == (tensor.device, tensor.dtype):
        return tensor
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(found, tensor.requires_grad)
    return found.requires_grad_(tensor.requires_grad)


def is_fake() -> bool:
    """Return whether a dispatch mode is active, such as the one of fake tensors."""
    return torch._C._len_torch_dispatch_stack() > 0
