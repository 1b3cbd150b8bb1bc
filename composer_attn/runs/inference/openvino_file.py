"""Networks in OpenVINO's intermediate representation: an .xml file, with the weights beside it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.tensor_names import INPUT, OUTPUT


def write_openvino(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network that accepts any batch size, in full precision."""
    with naming_the_extra("an .xml file"):
        import openvino
    converted = openvino.convert_model(
        network, example_input=example, input=[-1, *example.shape[1:]]
    )
    converted.inputs[0].get_tensor().set_names({INPUT})
    converted.outputs[0].get_tensor().set_names({OUTPUT})
    openvino.save_model(converted, str(path), compress_to_fp16=False)


def read_openvino(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of images, on the CPU."""
    with naming_the_extra("an .xml file"):
        import openvino
    # Full precision: on some processors the default is bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())
