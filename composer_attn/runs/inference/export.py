"""Export a trained run, and check that the file computes what the network does."""

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.checks import unknown, whole_number
from composer_attn.errors import (
    ArgumentError,
    ComposerAttnError,
    ExportError,
    NothingFoldedWarning,
    first_line,
)
from composer_attn.functional import fold_norms
from composer_attn.runs.data import Source
from composer_attn.runs.inference.comparison import ExportComparison, compare, enlarged
from composer_attn.runs.inference.formats import FORMATS, Compute, Write
from composer_attn.runs.inference.int8 import Int8
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.inference.model_card import ModelCard, sha256_of
from composer_attn.runs.inference.run_data import (
    batches,
    calibration_images,
    evaluation_data,
    first_images,
)
from composer_attn.runs.inference.tensor_names import INPUT
from composer_attn.runs.training.checkpoint_saver import saving
from composer_attn.runs.training.rank_consistency import versions

TOLERANCE = 1e-4
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class _Variant:
    """How a file is written, and what its card says of that.

    Attributes:
        write: writes a network to a file, given the example.
        example: a batch of two images.
        shape: of the file's input; dynamic dimensions are named.
        quantization: settings and library of the quantization; empty if there is none.
    """

    write: Write
    example: Tensor
    shape: tuple[int | str, ...]
    quantization: dict[str, Any]


def export(
    run: LoadedRun,
    to: str,
    out: str | Path | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
    fold: bool = True,
    *,
    int8: Int8 | None = None,
    dynamic_size: bool = False,
) -> tuple[Path, ModelCard]:
    """Export a run's network to a file that accepts any batch size, with a model card beside it.

    The file is written under a temporary name, read back, and compared with the network on the
    run's evaluation data, one image at a time and in batches; only then is it renamed.

    Args:
        run: a loaded run.
        to: ``onnx``, ``torch_export``, ``torchscript`` or ``openvino``.
        out: the file; by default ``model`` (``model-int8``) with the format's suffix, beside the
            checkpoint.
        samples: number of images to compare on, evenly spread over the data; by default all.
        tolerance: the largest accepted difference between outputs, in units of the largest output
            (at least 1); by default 1e-4. Not with ``int8``, which has limits of its own.
        fold: whether to fold the norms into the convolutions first, in a copy
            (:func:`composer_attn.fold_norms`); the comparison uses the unfolded network.
        int8: how to quantize weights and activations to eight-bit integers, after calibration on
            training images; by default they stay floats. Not for ``torchscript``.
        dynamic_size: whether the file also accepts images of any height and width, if the network
            does, which is checked at a second size. Not for ``torchscript``, and not together with
            ``int8``, which is calibrated at one size.

    Returns:
        The file, and the content of its card.

    Raises:
        ArgumentError: there is no such format, or an argument is invalid.
        ConfigError: there is no evaluation data, or no training data to calibrate with.
        ExportError: the network cannot be exported, or the file's outputs differ; no file is left.
        MissingExtraError: the library that writes the format is not installed.
        SaveError: the folder cannot be written.
    """
    run.check_classifies("export")
    _check_arguments(to, out, samples, tolerance)
    _check_variant(to, tolerance, int8, dynamic_size)
    name = f"model{'-int8' if int8 else ''}{FORMATS[to].ending}"
    path = Path(out) if out is not None else run.checkpoint.parent / name
    batch_size = min(run.config.batch_size, _LARGEST_BATCH)
    source, data = evaluation_data(run, batch_size, samples)
    variant = _variant(run, to, source, first_images(source, data), int8, dynamic_size)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".export-", dir=path.parent)
    try:
        written = Path(folder, path.name)
        compute = _write(run.network, to, variant, written, fold)
        compared = compare(run.network, compute, batches(source, data, samples), dynamic_size)
        limit = TOLERANCE if tolerance is None else tolerance
        objection = compared.objection_to_int8(int8) if int8 else compared.objection(limit)
        if objection:
            raise ExportError(f"{path} was not kept: {objection}")
        card = _card(run, to, written, variant, compared)
        with saving(path):
            card.write(written)
            for each in sorted(Path(folder).iterdir()):
                os.replace(each, path.with_name(each.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return path, card


def _check_arguments(
    to: str, out: str | Path | None, samples: int | None, tolerance: float | None
) -> None:
    if to not in FORMATS:
        raise ArgumentError(unknown("format", to, FORMATS))
    if samples is not None:
        whole_number("samples", samples, minimum=1)
    if tolerance is not None and not 0 < tolerance < inf:
        raise ArgumentError(f"tolerance must be more than 0; got {tolerance}")
    ending = FORMATS[to].ending
    if out is not None and Path(out).suffix != ending:
        raise ArgumentError(f"the {to} file must have a name that ends in {ending}; got {out}")
    FORMATS[to].check_library()


def _check_variant(to: str, tolerance: float | None, int8: Int8 | None, dynamic_size: bool) -> None:
    """Check that the format can be quantized, or accept images of any size, if requested."""
    if dynamic_size and FORMATS[to].write_dynamic_size is None:
        able = ", ".join(n for n, f in FORMATS.items() if f.write_dynamic_size is not None)
        raise ArgumentError(f"{to} files take images of one size: dynamic_size works with {able}")
    if int8 is None:
        return
    if FORMATS[to].write_int8 is None:
        able = ", ".join(n for n, f in FORMATS.items() if f.write_int8 is not None)
        raise ArgumentError(f"{to} files cannot be quantized: int8 works with {able}")
    if dynamic_size:
        raise ArgumentError(
            "int8 and dynamic_size cannot be combined: the ranges of activations are calibrated "
            "for images of one size"
        )
    if tolerance is not None:
        raise ArgumentError(
            "tolerance does not apply to int8, whose outputs are rounded: set accuracy_drop and "
            "agreement"
        )
    FORMATS[to].check_int8_library()


def _variant(
    run: LoadedRun,
    to: str,
    source: Source,
    example: Tensor,
    int8: Int8 | None,
    dynamic_size: bool,
) -> _Variant:
    """Return how to write the file; calibration images are read here."""
    format, channels = FORMATS[to], source.image_shape[0]
    if dynamic_size and format.write_dynamic_size:
        example = _second_size(run.network, example)
        sizes = ("batch", channels, "height", "width")
        return _Variant(format.write_dynamic_size, example, sizes, {})
    shape = ("batch", *source.image_shape)
    if int8 is None or format.write_int8 is None:
        return _Variant(format.write, example, shape, {})
    batch_size = min(run.config.batch_size, _LARGEST_BATCH)
    images = calibration_images(run, int8.calibration_images, batch_size)
    quantize = format.write_int8

    def write(network: nn.Module, example: Tensor, path: Path) -> None:
        quantize(network, example, path, images)

    library = (format.int8_library or "torch").partition(".")[0]
    settings = {
        "bits": 8,
        "calibration_images": sum(map(len, images)),
        "accepted": {"accuracy_drop": int8.accuracy_drop, "agreement": int8.agreement},
        "library": f"{library} {version(library)}",
    }
    return _Variant(write, example, shape, settings)


def _second_size(network: nn.Module, images: Tensor) -> Tensor:
    """Return images of a second size, if the network accepts them."""
    images = enlarged(images)
    try:
        with torch.inference_mode():
            network(images)
    except Exception as error:  # of any type, from third-party code
        height, width = images.shape[2:]
        raise ExportError(
            "dynamic_size: the network does not accept images of another size, such as "
            f"{height}x{width}: {first_line(error)}"
        ) from error
    return images


def _write(network: nn.Module, to: str, variant: _Variant, path: Path, fold: bool) -> Compute:
    """Write the file, and read it back."""
    with saving(path):
        try:
            variant.write(_folded(network) if fold else network, variant.example, path)
            return FORMATS[to].read(path)
        except (ComposerAttnError, OSError):
            raise
        except Exception as error:  # exporters may raise anything
            raise ExportError(f"cannot be exported to {to}: {first_line(error)}") from error


def _folded(network: nn.Module) -> nn.Module:
    """Return a copy of the network with all foldable norms folded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingFoldedWarning)
        return fold_norms(network, inplace=False, backend="reference")  # to be traced


def _card(
    run: LoadedRun, to: str, written: Path, variant: _Variant, compared: ExportComparison
) -> ModelCard:
    files = sorted(path.name for path in written.parent.iterdir())
    library = FORMATS[to].library
    return ModelCard(
        file=written.name,
        format=to,
        sha256={name: sha256_of(written.with_name(name)) for name in files},
        run_name=run.config.run_name,
        checkpoint=run.checkpoint.name,
        model={**run.config.model, "algorithms": run.config.algorithms},
        classes=run.classes,
        activation=run.activation,
        input={"name": INPUT, "shape": list(variant.shape), "type": "float32"},
        preprocessing=run.preprocessing,
        evaluation={"dataset": run.config.eval_dataset, **vars(compared)},
        versions=versions() | ({library: version(library)} if library else {}),
        quantization=variant.quantization,
    )
