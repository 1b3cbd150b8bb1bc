"""Networks as ``torch.export`` programs and as TorchScript."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from composer_attn.runs.inference.exported_program import load_exported_program


def write_torch_export(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as an exported program that accepts any batch size."""
    torch.export.save(exported(network, example, {0: Dim("batch")}), path)


def write_torch_export_dynamic_size(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a program that accepts any batch size, height and width.

    The smallest size that it accepts follows from the network: that at which no feature map of the
    example's that has several rows is reduced to one.
    """
    dynamic: Any = Dim  # typed as a function
    shapes = {0: Dim("batch"), 2: dynamic.DYNAMIC, 3: dynamic.DYNAMIC}
    torch.export.save(exported(network, example, shapes), path)


def exported(network: nn.Module, example: Tensor, shapes: dict[int, Any]) -> ExportedProgram:
    """Export a network with some dimensions of its input dynamic."""
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=(shapes,))


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of images, from a file of any origin."""
    return load_exported_program(path).module()


def write_torchscript(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as a traced TorchScript module."""
    with torch.no_grad():
        torch.jit.trace(network, example).save(str(path))


def read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of images; the file can run code, so trust it."""
    return torch.jit.load(str(path))
