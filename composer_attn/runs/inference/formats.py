"""The export formats, with the functions that write and read each."""

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
    """An export format.

    Attributes:
        ending: file suffix.
        write: writes a network to a file, given an example input (a batch of two).
        read: returns a function that computes logits of images from a file.
        library: the library required to write and read it, besides torch.
        from_others: whether an untrusted file can be read without executing its content.
    """

    ending: str
    write: Callable[[nn.Module, Tensor, Path], None]
    read: Callable[[Path], Compute]
    library: str | None = None
    from_others: bool = True

    def check_library(self) -> None:
        """Check that the library the format requires is installed.

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
