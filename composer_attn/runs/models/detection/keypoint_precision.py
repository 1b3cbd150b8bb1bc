"""Average precision of keypoints by object keypoint similarity, as COCO defines it."""

import contextlib
import io
from collections.abc import Sequence
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
    detections: list[Any]
    targets: list[Any]

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

        truth, found = _dataset(self.targets), _dataset(self.detections)
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


def _detected(each: Results) -> list[dict[str, Any]]:
    columns = (each[name].detach().cpu().tolist() for name in ("labels", "scores", "boxes"))
    points = each["keypoints"].detach().cpu().flatten(1).tolist()
    return [
        {"category_id": label, "score": score, "keypoints": row, **_extent(box)}
        for label, score, box, row in zip(*columns, points, strict=True)
    ]


def _annotated(each: Results) -> list[dict[str, Any]]:
    columns = (each[name].cpu().tolist() for name in ("labels", "iscrowd", "boxes"))
    keypoints = each["keypoints"].cpu()
    areas = each["area"].cpu().tolist() if "area" in each else [None] * len(keypoints)
    return [
        {
            "category_id": label, "iscrowd": crowd, "keypoints": row.flatten().tolist(),
            "num_keypoints": int((row[:, 2] > 0).sum()), **_extent(box),
            **({} if area is None else {"area": area}),
        }
        for label, crowd, box, row, area in zip(*columns, keypoints, areas, strict=True)
    ]  # fmt: skip


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
