"""Average precision of keypoints by object keypoint similarity, as COCO defines it."""

import contextlib
import io
from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from composer_attn.runs.models.detection.average_precision import (
    BoxPrecision,
    Gathered,
    Results,
    check_installed,
    figures_of,
)

_FIGURES = ("map", "map_50", "map_75", "map_medium", "map_large")  # COCO's, in its order
_MOST = 20  # detections in an image that COCO counts
# COCO's constants for the falloff at the 17 points of a person; others have the mean of these.
_PERSON = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
    0.087, 0.087, 0.089, 0.089,
)  # fmt: skip


class KeypointPrecision(Gathered):
    """Average precision of keypoints, over similarities from 0.5 to 0.95.

    Computed by faster-coco-eval; torchmetrics has none of keypoints.

    Args:
        points: number of keypoints of an object.
    """

    higher_is_better = True
    full_state_update = False
    detections: list[Tensor]
    targets: list[Tensor]

    def __init__(self, points: int):
        super().__init__()
        mean = sum(_PERSON) / len(_PERSON)
        self.sigmas = _PERSON if points == len(_PERSON) else (mean,) * points
        self.add_state("detections", default=[], dist_reduce_fx=None)
        self.add_state("targets", default=[], dist_reduce_fx=None)

    def update(self, detections: Sequence[Results], targets: Sequence[Results]) -> None:
        """Add the detections in images, and what is in them."""
        self.detections += [_detected(each) for each in detections]
        self.targets += [_annotated(each) for each in targets]

    def compute(self) -> dict[str, Tensor]:
        """Return COCO's figures by name; -1 where there is no object."""
        from faster_coco_eval import COCO, COCOeval_faster

        truth = _dataset([_objects(rows, "iscrowd") for rows in self.targets])
        found = _dataset([_objects(rows, "score") for rows in self.detections])
        categories = sorted(
            {o["category_id"] for o in (*truth["annotations"], *found["annotations"])}
        )
        for each in (truth, found):
            each["categories"] = [{"id": i, "name": str(i)} for i in categories]
        if not truth["annotations"] or not found["annotations"]:
            value = 0.0 if truth["annotations"] else -1.0
            return {name: torch.tensor(value) for name in _FIGURES}
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval_faster(COCO(truth), COCO(found), iouType="keypoints")
            evaluation.params.kpt_oks_sigmas = np.asarray(self.sigmas)
            evaluation.params.maxDets = [_MOST]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {n: torch.tensor(float(v)) for n, v in zip(_FIGURES, evaluation.stats, strict=False)}


def keypoint_metrics(points: int) -> dict[str, Metric]:
    """Return the average precision of keypoints, ``keypoint_map`` and so on, and of boxes.

    Args:
        points: number of keypoints of an object.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    check_installed()
    boxes = BoxPrecision(iou_type="bbox", backend="faster_coco_eval")
    keys = {f"keypoint_{name}": name for name in _FIGURES}
    return figures_of(KeypointPrecision(points), keys) | figures_of(boxes, {"map": "map"})


# States of metrics are lists of tensors, which torchmetrics moves and hashes: an image is a row for
# each object, of the label, a second number, the area or nan, the box, and the keypoints.


def _detected(each: Results) -> Tensor:
    """Return the rows of what is detected in an image; the second number is the score."""
    return _rows(each, each["scores"], None)


def _annotated(each: Results) -> Tensor:
    """Return the rows of what is in an image; the second number is 1 for crowds and the like."""
    return _rows(each, each["iscrowd"], each.get("area"))


def _rows(each: Results, second: Tensor, areas: Tensor | None) -> Tensor:
    unknown = torch.full_like(each["boxes"][:, 0], torch.nan)
    numbers = (each["labels"], second, unknown if areas is None else areas)
    columns = [*(n[:, None] for n in numbers), each["boxes"], each["keypoints"].flatten(1)]
    return torch.cat([column.detach().float() for column in columns], 1)


def _objects(rows: Tensor, second: str) -> list[dict[str, Any]]:
    """Return the objects of an image in COCO's format."""
    found = []
    for label, number, area, *rest in rows.cpu().tolist():
        box, points = rest[:4], rest[4:]
        extent = _extent(box) | ({} if isnan(area) else {"area": area})
        count = sum(visible > 0 for visible in points[2::3])
        found.append(
            {"category_id": int(label), "keypoints": points, "num_keypoints": count, **extent}
            | {second: int(number) if second == "iscrowd" else number}
        )
    return found


def _extent(box: list[float]) -> dict[str, Any]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}


def _dataset(images: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    rows = [{**each, "image_id": image} for image, found in enumerate(images) for each in found]
    return {
        "images": [{"id": image} for image in range(len(images))],
        "annotations": [{**each, "id": number} for number, each in enumerate(rows, start=1)],
    }
