"""Post-training quantization of ``torch.export`` programs, by PyTorch's pt2e."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from composer_attn.runs.inference.torch_file import exported


def write_torch_export_int8(
    network: nn.Module, example: Tensor, path: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a program with the weights of convolutions and linear layers in eight bits.

    Weights are quantized by output channel, activations by tensor, in the way of XNNPACK. Run by
    torch, the program converts them to floats before each layer.

    Args:
        network: the network, in evaluation mode.
        example: a batch of two images.
        path: the file.
        calibration: batches of images, from which the ranges of activations are observed.
    """
    # Imported here, as importing takes long, and newer torch has it elsewhere.
    from torch.ao.quantization.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torch.ao.quantization.quantizer import xnnpack_quantizer as xnnpack

    shapes = {0: Dim("batch")}
    with warnings.catch_warnings():
        # Deprecated in favour of torchao's, which is private there, or ExecuTorch's. torchao's x86
        # quantizer finds layers by their class, and passes over attended ones.
        warnings.filterwarnings("ignore", "XNNPACKQuantizer is deprecated")
        quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    program = cast(GraphModule, exported(network, example, shapes).module())
    prepared = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for images in calibration:
            prepared(images)
    quantized = _without_unused(convert_pt2e(prepared))
    torch.export.save(exported(quantized, example, shapes), path)


def _without_unused(program: GraphModule) -> GraphModule:
    """Remove the float weights that the quantized ones have replaced."""
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for name in {**dict(program.named_parameters()), **dict(program.named_buffers())}.keys() - used:
        parent, _, own = name.rpartition(".")
        delattr(program.get_submodule(parent), own)
    return program
