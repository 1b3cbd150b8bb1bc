"""The export formats, with the functions that write and read each."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.onnx_file import read_onnx, write_onnx, write_onnx_dynamic_size
from composer_attn.runs.inference.onnx_int8 import write_onnx_int8
from composer_attn.runs.inference.openvino_file import (
    read_openvino,
    write_openvino,
    write_openvino_dynamic_size,
)
from composer_attn.runs.inference.openvino_int8 import write_openvino_int8
from composer_attn.runs.inference.torch_file import (
    read_torch_export,
    read_torchscript,
    write_torch_export,
    write_torch_export_dynamic_size,
    write_torchscript,
)
from composer_attn.runs.inference.torch_int8 import write_torch_export_int8

Compute = Callable[[Tensor], Tensor]
Write = Callable[[nn.Module, Tensor, Path], None]
Quantize = Callable[[nn.Module, Tensor, Path, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        ending: file suffix.
        write: writes a network to a file, given an example input (a batch of two).
        read: returns a function that computes logits of images from a file.
        library: the library required to write and read it, besides torch.
        from_others: whether an untrusted file can be read without executing its content.
        write_dynamic_size: like ``write``, with height and width of the images dynamic; None if the
            format has it not.
        write_int8: like ``write``, in eight-bit integers, given also batches of images to calibrate
            with; None if the format has it not.
        int8_library: the module that ``write_int8`` requires, besides torch.
    """

    ending: str
    write: Write
    read: Callable[[Path], Compute]
    library: str | None = None
    from_others: bool = True
    write_dynamic_size: Write | None = None
    write_int8: Quantize | None = None
    int8_library: str | None = None

    def check_library(self) -> None:
        """Check that the library the format requires is installed.

        Raises:
            MissingExtraError: it is not; the message names the extra.
        """
        if self.library is not None:
            with naming_the_extra(f"a {self.ending} file"):
                importlib.import_module(self.library)

    def check_int8_library(self) -> None:
        """Check that the library that quantizes is installed.

        Raises:
            MissingExtraError: it is not; the message names the extra.
        """
        if self.int8_library is not None:
            with naming_the_extra(f"an eight-bit {self.ending} file"):
                importlib.import_module(self.int8_library)


FORMATS = {
    "onnx": Format(
        ".onnx",
        write_onnx,
        read_onnx,
        "onnxruntime",
        write_dynamic_size=write_onnx_dynamic_size,
        write_int8=write_onnx_int8,
        int8_library="onnxruntime.quantization",
    ),
    "torch_export": Format(
        ".pt2",
        write_torch_export,
        read_torch_export,
        write_dynamic_size=write_torch_export_dynamic_size,
        write_int8=write_torch_export_int8,
    ),
    "torchscript": Format(".torchscript", write_torchscript, read_torchscript, from_others=False),
    "openvino": Format(
        ".xml",
        write_openvino,
        read_openvino,
        "openvino",
        write_dynamic_size=write_openvino_dynamic_size,
        write_int8=write_openvino_int8,
        int8_library="nncf",
    ),
}
