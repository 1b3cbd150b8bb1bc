"""Networks as programs of torch.export, and as TorchScript."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from composer_attn.runs.inference.exported_program import load_exported_program


def write_torch_export(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network as an exported program for batches of any size."""
    shapes = ({0: Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, path)


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what computes logits of images, of a file that anybody made."""
    return load_exported_program(path).module()


def write_torchscript(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a traced network."""
    with torch.no_grad():
        torch.jit.trace(network, example).save(str(path))


def read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what computes logits of images, of a file of one's own: it is a program."""
    return torch.jit.load(str(path))
