"""Networks in OpenVINO's intermediate representation: an .xml file, with the weights beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.tensor_names import INPUT, OUTPUT


def write_openvino(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network that accepts any batch size, in full precision."""
    save_openvino(converted(network, example, [-1, *example.shape[1:]]), path)


def write_openvino_dynamic_size(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network that accepts any batch size, height and width, in full precision."""
    save_openvino(converted(network, example, [-1, example.shape[1], -1, -1]), path)


def converted(network: nn.Module, example: Tensor, shape: Sequence[int]) -> Any:
    """Convert a network to an ``openvino.Model``.

    Args:
        network: the network, in evaluation mode.
        example: a batch of two images.
        shape: of the input; -1 for dynamic dimensions.
    """
    with naming_the_extra("an .xml file"):
        import openvino
    model = openvino.convert_model(network, example_input=example, input=list(shape))
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    return model


def save_openvino(model: Any, path: Path) -> None:
    """Write an ``openvino.Model`` to a file, and its weights, as they are, beside it."""
    with naming_the_extra("an .xml file"):
        import openvino
    openvino.save_model(model, str(path), compress_to_fp16=False)


def read_openvino(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that computes logits of images, on the CPU."""
    with naming_the_extra("an .xml file"):
        import openvino
    # Full precision: on some processors the default is bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda images: torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())
