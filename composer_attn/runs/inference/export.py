"""Export a trained run, and check that the file computes what the network does."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import torch
from composer.core import DataSpec
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
from composer_attn.runs.inference.evaluate import evaluation_data
from composer_attn.runs.inference.formats import FORMATS, Compute, Format
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.inference.model_card import ModelCard, sha256_of
from composer_attn.runs.inference.tensor_names import INPUT
from composer_attn.runs.training.checkpoint_saver import saving
from composer_attn.runs.training.rank_consistency import versions

TOLERANCE = 1e-4
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Comparison:
    """Comparison of a network and its exported file on the same images.

    Attributes:
        samples: number of images.
        accuracy_before: accuracy of the network, from 0 to 1.
        accuracy_after: accuracy of the file, from 0 to 1.
        largest_difference: between their outputs, in units of the largest output (at least 1).
    """

    samples: int
    accuracy_before: float
    accuracy_after: float
    largest_difference: float


def export(
    run: LoadedRun,
    to: str,
    out: str | Path | None = None,
    samples: int | None = None,
    tolerance: float = TOLERANCE,
    fold: bool = True,
) -> tuple[Path, ModelCard]:
    """Export a run's network to a file that accepts any batch size, with a model card beside it.

    The file is written under a temporary name, read back, and compared with the network on the
    run's evaluation data, one image at a time and in batches; only then is it renamed.

    Args:
        run: a loaded run.
        to: ``onnx``, ``torch_export``, ``torchscript`` or ``openvino``.
        out: the file; by default ``model`` with the format's suffix, beside the checkpoint.
        samples: number of images to compare on, evenly spread over the data; by default all.
        tolerance: the largest accepted difference between outputs, in units of the largest output
            (at least 1).
        fold: whether to fold the norms into the convolutions first, in a copy
            (:func:`composer_attn.fold_norms`); the comparison uses the unfolded network.

    Returns:
        The file, and the content of its card.

    Raises:
        ArgumentError: there is no such format, or an argument is invalid.
        ConfigError: there is no evaluation data.
        ExportError: the network cannot be exported, or the file's outputs differ; no file is left.
        MissingExtraError: the library that writes the format is not installed.
        SaveError: the folder cannot be written.
    """
    _check_arguments(to, out, samples, tolerance)
    format = FORMATS[to]
    path = Path(out) if out is not None else run.checkpoint.parent / f"model{format.ending}"
    batch_size = min(run.config.batch_size, _LARGEST_BATCH)
    source, data = evaluation_data(run, batch_size, samples)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=".export-", dir=path.parent)
    try:
        written = Path(partial, path.name)
        compute = _write(run, format, written, _first_images(source, data), to, fold)
        compared = compare(run, compute, _batches(source, data, samples))
        if not compared.largest_difference <= tolerance:
            raise ExportError(
                f"{path} was not kept: on {compared.samples:,} evaluation images its outputs "
                f"differ from the network's by up to {compared.largest_difference:.1e} of the "
                f"largest, more than the tolerance of {tolerance:g}"
            )
        card = _card(run, to, written, source, compared)
        with saving(path):
            card.write(written)
            for each in sorted(Path(partial).iterdir()):
                os.replace(each, path.with_name(each.name))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path, card


def _check_arguments(
    to: str, out: str | Path | None, samples: int | None, tolerance: float
) -> None:
    if to not in FORMATS:
        raise ArgumentError(unknown("format", to, FORMATS))
    if samples is not None:
        whole_number("samples", samples, minimum=1)
    if not 0 < tolerance < inf:
        raise ArgumentError(f"tolerance must be more than 0; got {tolerance}")
    ending = FORMATS[to].ending
    if out is not None and Path(out).suffix != ending:
        raise ArgumentError(f"a file of {to} must end in {ending}; got {out}")
    FORMATS[to].check_library()


def compare(
    run: LoadedRun, compute: Compute, batches: Iterator[tuple[Tensor, Tensor]]
) -> Comparison:
    """Compare a run's network with its exported function on batches of images and labels."""
    count, right, largest = 0, [0, 0], 0.0
    for images, labels in batches:
        # Also the first image alone, as an exporter may have fixed the batch size of its example.
        parts = [images[:1], images] if not count else [images]
        with torch.inference_mode():
            pairs = [(run.network(part), _computed(compute, part)) for part in parts]
        for expected, found in pairs:
            largest = max(largest, _difference(expected, found))
        right = [
            n + int((o.argmax(1) == labels).sum()) for n, o in zip(right, pairs[-1], strict=True)
        ]
        count += len(labels)
    return Comparison(count, right[0] / count, right[1] / count, largest)


def _computed(compute: Compute, images: Tensor) -> Tensor:
    try:
        return compute(images)
    except Exception as error:  # from the library that runs the file
        raise ExportError(
            f"the exported file does not run on {len(images)} images: {first_line(error)}"
        ) from error


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return inf
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1))
    return difference if difference >= 0 else inf  # NaN compares false


def _write(
    run: LoadedRun, format: Format, path: Path, example: Tensor, to: str, fold: bool
) -> Compute:
    """Write the file, and read it back."""
    with saving(path):
        try:
            format.write(_folded(run.network) if fold else run.network, example, path)
            return format.read(path)
        except (ComposerAttnError, OSError):
            raise
        except Exception as error:  # exporters may raise anything
            raise ExportError(f"cannot be exported to {to}: {first_line(error)}") from error


def _folded(network: nn.Module) -> nn.Module:
    """Return a copy of the network with all foldable norms folded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingFoldedWarning)
        return fold_norms(network, inplace=False)


def _first_images(source: Source, data: DataSpec) -> Tensor:
    images, _ = next(_batches(source, data, None))
    return torch.cat([images, images])[:2]  # a batch of one would be exported as a constant size


def _batches(
    source: Source, data: DataSpec, samples: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield preprocessed images and labels, up to ``samples`` images."""
    left: Any = inf if samples is None else samples
    for images, labels in data.dataloader:
        if left <= 0:
            return
        images, labels = (part[: int(min(left, len(labels)))] for part in (images, labels))
        left -= len(labels)
        prepared = source.device_transform(images) if source.device_transform else images
        yield prepared.contiguous(), labels


def _library(format: Format) -> dict[str, str]:
    return {format.library: version(format.library)} if format.library else {}


def _card(
    run: LoadedRun, to: str, written: Path, source: Source, compared: Comparison
) -> ModelCard:
    files = sorted(path.name for path in written.parent.iterdir())
    return ModelCard(
        file=written.name,
        format=to,
        sha256={name: sha256_of(written.with_name(name)) for name in files},
        run_name=run.config.run_name,
        checkpoint=run.checkpoint.name,
        model={**run.config.model, "algorithms": run.config.algorithms},
        classes=run.classes,
        activation=run.activation,
        input={"name": INPUT, "shape": ["batch", *source.image_shape], "type": "float32"},
        preprocessing=run.preprocessing,
        evaluation={"dataset": run.config.eval_dataset, **vars(compared)},
        versions=versions() | _library(FORMATS[to]),
    )
