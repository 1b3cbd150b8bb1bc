"""Datasets of objects in images: boxes, masks and keypoints."""

from collections.abc import Callable

from composer_attn.runs.data.detection.coco import coco_boxes, coco_keypoints, coco_masks
from composer_attn.runs.data.detection.shapes import (
    shapes_boxes,
    shapes_keypoints,
    shapes_masks,
)
from composer_attn.runs.data.detection.voc import voc_boxes, voc_masks
from composer_attn.runs.data.source import Source

DETECTION_DATASETS: dict[str, Callable[..., Source]] = {
    "coco": coco_boxes,
    "shapes": shapes_boxes,
    "voc": voc_boxes,
}
INSTANCE_DATASETS: dict[str, Callable[..., Source]] = {
    "coco": coco_masks,
    "shapes": shapes_masks,
    "voc": voc_masks,
}
KEYPOINT_DATASETS: dict[str, Callable[..., Source]] = {
    "coco": coco_keypoints,
    "shapes": shapes_keypoints,
}

__all__ = ["DETECTION_DATASETS", "INSTANCE_DATASETS", "KEYPOINT_DATASETS"]
