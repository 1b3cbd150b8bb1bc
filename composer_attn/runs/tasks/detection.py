"""Objects in images: their boxes, their masks, their keypoints."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from composer_attn.errors import ArgumentError
from composer_attn.runs.data.detection import (
    DETECTION_DATASETS,
    INSTANCE_DATASETS,
    KEYPOINT_DATASETS,
)
from composer_attn.runs.data.source import Source
from composer_attn.runs.models.detection import build
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.task import Example, Task

_LARGEST = 256  # pixels of the longer side of an example
_SURE = 0.5  # the least score of a detection that is drawn


def examples_of(batch: Any, outputs: Any) -> list[Example]:
    """Return the images of a batch with the objects in them and those detected.

    Args:
        batch: images ``(3, H, W)`` with values from 0 to 1, and targets.
        outputs: the detections in each image.

    Returns:
        For each image, ``image`` ``(3, h, w)``, uint8, of large ones every second, third, ...
        pixel; ``truth_boxes`` ``(N, 4)`` in its pixels, ``truth_labels`` ``(N,)``; the same of
        detections with a score of at least 0.5, as ``predicted_...``, with ``predicted_scores``;
        and ``..._masks`` ``(N, h, w)`` or ``..._keypoints`` ``(N, K, 3)``, if there are any.
    """
    found = []
    for image, target, detected in zip(*batch, outputs, strict=True):
        step = -(-max(image.shape[-2:]) // _LARGEST)
        pixels = (255 * image[:, ::step, ::step]).round().byte()
        kept = {n: t for n, t in target.items() if n in ("boxes", "labels", "masks", "keypoints")}
        sure = {name: each[detected["scores"] >= _SURE] for name, each in detected.items()}
        if "masks" in sure:
            sure["masks"] = sure["masks"].squeeze(1) > _SURE
        found.append(
            {"image": pixels.cpu().numpy()}
            | _arrays("truth", kept, step)
            | _arrays("predicted", sure, step)
        )
    return found


def _arrays(what: str, objects: Mapping[str, Tensor], step: int) -> Example:
    names = ("boxes", "labels", "scores", "masks", "keypoints")
    return {f"{what}_{n}": _array(n, objects[n], step) for n in names if n in objects}


def _array(name: str, values: Tensor, step: int) -> np.ndarray:
    if name == "masks":
        return values[:, ::step, ::step].bool().cpu().numpy()
    array: np.ndarray = values.detach().float().cpu().numpy()
    if name == "boxes":
        return array / step
    return array / [step, step, 1] if name == "keypoints" else array


def check_keypoints(model: Any, source: Source) -> None:
    """Check that the objects of data have as many keypoints as a network places.

    Args:
        model: a :class:`~composer_attn.runs.models.detection.composer_detector.Detector`.
        source: the data.

    Raises:
        ArgumentError: they have not.
    """
    if source.keypoints != model.num_keypoints:
        raise ArgumentError(
            f"its objects have {source.keypoints} keypoints, but the model has "
            f"{model.num_keypoints}: set model.num_keypoints={source.keypoints}"
        )


_SHARED: dict[str, Any] = {
    "model_arguments": build.MODEL_ARGUMENTS,
    "check_weights": build.check_weights,
    "num_classes_of": build.num_classes_of,
    "with_num_classes": build.with_num_classes,
    "arguments_by_weights": build.arguments_by_weights,
    "examples_of": examples_of,
}

DETECTION = Task(
    name="detection",
    headline=Headline("map", "AP"),
    models=build.DETECTORS,
    datasets=DETECTION_DATASETS,
    build_model=build.build_detector,
    **_SHARED,
)
INSTANCE_SEGMENTATION = Task(
    name="instance_segmentation",
    headline=Headline("mask_map", "mask AP"),
    models=build.MASK_NETWORKS,
    datasets=INSTANCE_DATASETS,
    build_model=build.build_mask_network,
    **_SHARED,
)
KEYPOINTS = Task(
    name="keypoints",
    headline=Headline("keypoint_map", "keypoint AP"),
    models=build.KEYPOINT_NETWORKS,
    datasets=KEYPOINT_DATASETS,
    build_model=build.build_keypoint_network,
    check_data=check_keypoints,
    **_SHARED,
)
