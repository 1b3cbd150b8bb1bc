"""Semantic segmentation: a class for each pixel."""

from typing import Any

from torch import Tensor

from composer_attn.runs.data.segmentation import SEGMENTATION_DATASETS
from composer_attn.runs.models.segmentation import (
    SEGMENTATION_ARGUMENTS,
    SEGMENTATION_MODELS,
    build_segmentation_model,
    check_segmentation_weights,
    segmentation_arguments_by_weights,
    segmentation_classes,
    with_segmentation_classes,
)
from composer_attn.runs.tasks.headline import Headline
from composer_attn.runs.tasks.task import Example, Task

_LARGEST = 256  # pixels of the longer side of an example


def examples_of(batch: Any, outputs: Tensor) -> list[Example]:
    """Return the images of a batch with their masks and the predicted ones.

    Args:
        batch: normalized images ``(N, 3, H, W)`` and masks ``(N, H, W)``.
        outputs: logits ``(N, classes, H, W)``.

    Returns:
        For each image, ``image`` ``(3, h, w)``, ``truth`` and ``predicted`` ``(h, w)``, uint8; of
        large ones every second, third, ... pixel.
    """
    images, masks = batch
    step = -(-max(images.shape[-2:]) // _LARGEST)
    found = []
    for image, mask, logits in zip(images, masks, outputs, strict=True):
        arrays = {"image": as_bytes(image), "truth": mask, "predicted": logits.argmax(0)}
        found.append({n: a[..., ::step, ::step].byte().cpu().numpy() for n, a in arrays.items()})
    return found


def as_bytes(image: Tensor) -> Tensor:
    """Convert a normalized image to values from 0 to 255, from its least to its largest."""
    values = image.float() - image.min()
    return (255 * values / values.max().clamp(min=1e-6)).byte()


SEMANTIC_SEGMENTATION = Task(
    name="semantic_segmentation",
    headline=Headline("mean_iou", "mean IoU"),
    models=SEGMENTATION_MODELS,
    model_arguments=SEGMENTATION_ARGUMENTS,
    datasets=SEGMENTATION_DATASETS,
    build_model=build_segmentation_model,
    check_weights=check_segmentation_weights,
    num_classes_of=segmentation_classes,
    with_num_classes=with_segmentation_classes,
    arguments_by_weights=segmentation_arguments_by_weights,
    examples_of=examples_of,
)
