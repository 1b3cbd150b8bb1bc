"""Networks as ``torch.export`` programs and as TorchScript."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from composer_attn.runs.inference.exported_program import load_exported_program


def write_torch_export(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as an exported program that accepts any batch size."""
    shapes = ({0: Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, path)


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
