"""Networks in ONNX format, run by ONNX Runtime."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.tensor_names import INPUT, OUTPUT


def write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network that accepts any batch size; ``example`` is a batch of two."""
    _write(network, example, path, {0: "batch"})


def write_onnx_dynamic_size(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network that accepts any batch size, height and width."""
    _write(network, example, path, {0: "batch", 2: "height", 3: "width"})


def _write(network: nn.Module, example: Tensor, path: Path, axes: dict[int, str]) -> None:
    with warnings.catch_warnings():
        # The exporter warns about tracing, traced constants and its own deprecation.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes, OUTPUT: {0: "batch"}},
        )


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of images, on the CPU."""
    with naming_the_extra("an .onnx file"):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def compute(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return compute
