"""The formats that a network can be exported to: what writes each, and what reads it."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.onnx_file import read_onnx, write_onnx
from composer_attn.runs.inference.openvino_file import read_openvino, write_openvino
from composer_attn.runs.inference.torch_file import (
    read_torch_export,
    read_torchscript,
    write_torch_export,
    write_torchscript,
)

Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A format of exported networks.

    Attributes:
        ending: of its files.
        write: writes a network, given an example of its input (a batch of two), to a file.
        read: returns what computes logits of images by a file.
        library: what is imported to write and to read it, besides torch.
        from_others: whether a file that somebody else made can be read without running what is in
            it.
    """

    ending: str
    write: Callable[[nn.Module, Tensor, Path], None]
    read: Callable[[Path], Compute]
    library: str | None = None
    from_others: bool = True

    def check_library(self) -> None:
        """Make sure that what the format needs is installed.

        Raises:
            MissingExtraError: it is not; the message names the extra.
        """
        if self.library is not None:
            with naming_the_extra(f"a {self.ending} file"):
                importlib.import_module(self.library)


FORMATS = {
    "onnx": Format(".onnx", write_onnx, read_onnx, "onnxruntime"),
    "torch_export": Format(".pt2", write_torch_export, read_torch_export),
    "torchscript": Format(".torchscript", write_torchscript, read_torchscript, from_others=False),
    "openvino": Format(".xml", write_openvino, read_openvino, "openvino"),
}
