"""The ways to run a network that are compared, and how each is prepared."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import ArgumentError, NothingFoldedWarning
from composer_attn.extras import naming_the_extra
from composer_attn.functional import fold_norms, fuse_attention
from composer_attn.runs.benchmark.subject import Subject
from composer_attn.runs.inference.onnx_file import write_onnx

Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class ExecutionVariant:
    """A way to run a network.

    Attributes:
        attended: whether the network has the added attention.
        prepare: returns a function of images ``(N, C, H, W)``, given the network, which it may
            change, and two images.
        meaning: what it is, for documentation.
    """

    attended: bool
    prepare: Callable[[nn.Module, Tensor], Run]
    meaning: str


def prepare(name: str, subject: Subject, images: Tensor) -> Run:
    """Return the function that runs a variant on images, without gradients.

    Raises:
        Exception: of any type, from the library that runs it, if it cannot be run here.
    """
    variant = VARIANTS[name]
    network = copy.deepcopy(subject.attended if variant.attended else subject.plain)
    run = variant.prepare(network.to(images.device), images[:2])

    def without_gradients(batch: Tensor) -> Any:
        with torch.no_grad():
            return run(batch)

    return without_gradients


def _as_is(network: nn.Module, images: Tensor) -> Run:
    return network


def _fused(network: nn.Module, images: Tensor) -> Run:
    fuse_attention(network)
    return network


def _folded(network: nn.Module, images: Tensor) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingFoldedWarning)
        return fold_norms(network)


def _compiled(network: nn.Module, images: Tensor) -> Run:
    return torch.compile(network, dynamic=False)


def _onnxruntime(network: nn.Module, images: Tensor) -> Run:
    if images.device.type != "cpu":
        raise ArgumentError("ONNX Runtime is measured on the CPU only")
    with naming_the_extra("ONNX Runtime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Otherwise its threads wait busily after each call, and slow down the next variant.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingFoldedWarning)
        network = fold_norms(network, backend="reference")  # to be traced
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(network, torch.cat([images, images])[:2], path)
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


VARIANTS = {
    "plain": ExecutionVariant(False, _as_is, "without the added attention"),
    "attended": ExecutionVariant(True, _as_is, "with attention, computed after each site"),
    "fused": ExecutionVariant(True, _fused, "fuse_attention"),
    "folded": ExecutionVariant(True, _folded, "fold_norms"),
    "compiled": ExecutionVariant(True, _compiled, "torch.compile of the attended network"),
    "onnxruntime": ExecutionVariant(
        True, _onnxruntime, "folded, exported to ONNX, in ONNX Runtime"
    ),
    "plain_folded": ExecutionVariant(False, _folded, "fold_norms without attention"),
    "plain_compiled": ExecutionVariant(False, _compiled, "torch.compile without attention"),
    "plain_onnxruntime": ExecutionVariant(
        False, _onnxruntime, "like onnxruntime, without attention"
    ),
}
DEFAULT_VARIANTS = ("plain", "attended", "fused", "folded", "compiled", "onnxruntime")
