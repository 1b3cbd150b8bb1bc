"""Post-training quantization of OpenVINO files, by NNCF."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from torch import Tensor, nn

from composer_attn.extras import naming_the_extra
from composer_attn.runs.inference.openvino_file import converted, save_openvino


def write_openvino_int8(
    network: nn.Module, example: Tensor, path: Path, calibration: Sequence[Tensor]
) -> None:
    """Write a network with the weights and activations of its layers in eight bits.

    Args:
        network: the network, in evaluation mode.
        example: a batch of two images.
        path: the file.
        calibration: batches of images, from which the ranges of activations are observed.
    """
    with naming_the_extra("an eight-bit .xml file"):
        import nncf
    floats = converted(network, example, [-1, *example.shape[1:]])
    # One at a time: NNCF takes the statistics of a batch for those of one sample.
    images = [image.numpy() for batch in calibration for image in batch.split(1)]
    # Its progress bars would be between the lines of the command, or in its JSON.
    with redirect_stdout(StringIO()):
        quantized = nncf.quantize(floats, nncf.Dataset(images), subset_size=len(images))
    save_openvino(quantized, path)
