"""Predict what is in image files, with a network of any task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer_attn.errors import ArgumentError
from composer_attn.runs.inference.load_run import LoadedRun
from composer_attn.runs.inference.predict import Classifier, predict
from composer_attn.runs.inference.predict_objects import predict_objects
from composer_attn.runs.inference.predict_pixels import predict_pixels
from composer_attn.runs.tasks.classification import CLASSIFICATION
from composer_attn.runs.tasks.semantic_segmentation import SEMANTIC_SEGMENTATION


def predict_any(
    loaded: LoadedRun | Classifier, images: Sequence[str | Path], **options: Any
) -> Sequence[Any]:
    """Predict as the task of a run does, or classify with an exported file.

    Args:
        loaded: a run, or a classifier.
        images: image files.
        options: ``top`` of classification, ``least_score`` and ``out`` of objects, ``out`` of
            semantic segmentation; ``None`` for the default.

    Returns:
        For each image what is in it, which can be printed.

    Raises:
        ArgumentError: an image cannot be read, an option is invalid or of another task, or masks
            have no folder to be written to.
    """
    task = loaded.config.task if isinstance(loaded, LoadedRun) else CLASSIFICATION.name
    given = {name: value for name, value in options.items() if value is not None}
    predictors = {CLASSIFICATION.name: predict, SEMANTIC_SEGMENTATION.name: predict_pixels}
    predictor: Any = predictors.get(task, predict_objects)
    takes = {predict: ("top",), predict_pixels: ("out",)}.get(predictor, ("least_score", "out"))
    other = sorted({*given} - {*takes})
    if other:
        raise ArgumentError(
            f"--{other[0].replace('_', '-')} does not apply to task {task}: leave it out"
        )
    if predictor is predict_pixels and "out" not in given:
        raise ArgumentError(f"for task {task}, name the folder to write the masks to: --out FOLDER")
    found: Sequence[Any] = predictor(loaded, images, **given)
    return found
