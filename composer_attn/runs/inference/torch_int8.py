"""Post-training quantization of ``torch.export`` programs, by torchao's pt2e."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.torch_file import exported


def write_torch_export_int8(
    network: nn.Module, example: Tensor, path: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a program with the weights of convolutions and linear layers in eight bits.

    Weights are quantized by output channel, activations by tensor, as the x86 backend of
    torch.compile computes them; elsewhere they are converted back before each layer.

    Args:
        network: the network, in evaluation mode.
        example: a batch of two images.
        path: the file.
        calibration: batches of images, from which the ranges of activations are observed.
    """
    with naming_the_extra("an eight-bit .pt2 file"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    shapes = {0: Dim("batch")}
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported(network, example, shapes).module(), quantizer)
    with torch.no_grad():
        for images in calibration:
            prepared(images)
    torch.export.save(exported(convert_pt2e(prepared), example, shapes), path)
