"""Post-training static quantization of ONNX files, by ONNX Runtime."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.onnx_file import write_onnx
from composer_attn.runs.inference.tensor_names import INPUT


class _Reader:
    """A ``CalibrationDataReader``: returns one batch per call, then None."""

    def __init__(self, batches: Sequence[Tensor]):
        self._left: Iterator[Tensor] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self._left, None)
        return None if images is None else {INPUT: images.numpy()}


def write_onnx_int8(
    network: nn.Module, example: Tensor, path: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a network with eight-bit weights and activations, in the QDQ format.

    Weights are quantized by output channel, to seven of the eight bits: with eight, sums saturate
    on x86 processors without VNNI instructions, and the file would compute something else there.

    Args:
        network: the network, in evaluation mode.
        example: a batch of two images.
        path: the file.
        calibration: batches of images, from which the ranges of activations are observed.
    """
    with naming_the_extra("an eight-bit .onnx file"):
        from onnxruntime import quantization
    with tempfile.TemporaryDirectory() as folder:
        floats, prepared = Path(folder, "floats.onnx"), Path(folder, "prepared.onnx")
        write_onnx(network, example, floats)
        quantization.quant_pre_process(str(floats), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(path),
            _Reader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
