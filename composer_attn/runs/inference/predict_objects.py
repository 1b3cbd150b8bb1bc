"""Find objects in image files with a trained network: boxes, masks, keypoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composer_attn.checks import is_real
from composer_attn.errors import ArgumentError
from composer_attn.runs.inference.index_images import IndexImages, read_image
from composer_attn.runs.inference.load_run import LoadedRun

_INSIDE = 0.5  # the least probability of a pixel of a mask
_MOST = 254  # objects that an image of eight bits can number, apart from 0 and 255


@dataclass(frozen=True)
class Found:
    """An object in an image.

    Attributes:
        name: its class.
        index: the label of the class, from 1 on.
        score: from 0 to 1.
        box: x and y of the upper left and of the lower right corner, in pixels.
        keypoints: x, y in pixels of each keypoint, and 1; None if the network places none.
    """

    name: str
    index: int
    score: float
    box: tuple[float, ...]
    keypoints: tuple[tuple[float, ...], ...] | None = None

    def __str__(self) -> str:
        corners = ", ".join(f"{corner:.1f}" for corner in self.box)
        return f"{self.name} {self.score:.2%} [{corners}]"


@dataclass(frozen=True)
class ObjectsFound:
    """The objects in an image file, in descending order of their scores.

    Attributes:
        image: the file.
        objects: the objects.
        mask: the file with the number of the object, from 1 on, that each pixel belongs to; None
            if none was written.
    """

    image: str
    objects: tuple[Found, ...]
    mask: str | None = None

    def __str__(self) -> str:
        return f"{self.image}: " + ("; ".join(map(str, self.objects)) or "nothing found")


def predict_objects(
    run: LoadedRun,
    images: Sequence[str | Path],
    least_score: float = 0.5,
    out: str | Path | None = None,
) -> list[ObjectsFound]:
    """Return the objects in each image file.

    Args:
        run: a run of detection, instance segmentation or keypoints.
        images: image files of any sizes.
        least_score: objects with a lower score are left out.
        out: a folder for the masks of instance segmentation, ``NAME.png`` for each image: each
            pixel is the number of the object that it belongs to, from 1 on in descending order of
            scores, or 0. Of overlapping objects, the one with the higher score is in front.

    Raises:
        ArgumentError: a file cannot be read as an image, a mask cannot be written, the run has no
            masks, or ``least_score`` is not from 0 to 1.
    """
    if not is_real(least_score) or not 0 <= least_score <= 1:
        raise ArgumentError(f"least_score must be a number from 0 to 1; got {least_score!r}")
    if out is not None and run.config.task != "instance_segmentation":
        raise ArgumentError(
            f"{run.config.run_name} is of task {run.config.task}, which has no masks: leave out "
            "--out"
        )
    files = None if out is None else IndexImages(out, images)
    found = []
    for path in images:
        pixels = read_image(path)
        with torch.inference_mode():
            (detected,) = run.network([pixels.float() / 255])
        kept = detected["scores"] >= least_score
        detected = {name: values[kept].cpu() for name, values in detected.items()}
        mask = None if files is None else files.add(path, _numbered(path, detected["masks"]))
        found.append(ObjectsFound(str(path), _objects(detected, run.classes), mask))
    if files is not None:
        files.write()
    return found


def _objects(detected: dict[str, Tensor], classes: Sequence[str]) -> tuple[Found, ...]:
    columns: list[Any] = [detected[name].tolist() for name in ("labels", "scores", "boxes")]
    points = detected.get("keypoints")
    columns.append([None] * len(columns[0]) if points is None else points.tolist())
    return tuple(
        Found(classes[label - 1], label, score, tuple(box), places and tuple(map(tuple, places)))
        for label, score, box, places in zip(*columns, strict=True)
    )


def _numbered(path: str | Path, masks: Tensor) -> np.ndarray:
    """Return the number of the object in front at each pixel, from masks ``(N, 1, H, W)``."""
    if len(masks) > _MOST:
        raise ArgumentError(
            f"{path} has {len(masks)} objects, and an image can number {_MOST}: raise least_score"
        )
    numbers = np.zeros(tuple(masks.shape[-2:]), np.uint8)
    for number in range(len(masks), 0, -1):  # the best last, on top
        numbers[masks[number - 1, 0].numpy() > _INSIDE] = number
    return numbers
