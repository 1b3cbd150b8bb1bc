"""Datasets of objects in images: boxes, masks and keypoints."""

from collections.abc import Callable

from composer_attn.runs.data.detection.coco import coco_boxes, coco_keypoints, coco_masks
from composer_attn.runs.data.detection.shapes import shapes_boxes, shapes_masks
from composer_attn.runs.data.detection.voc import voc
from composer_attn.runs.data.source import Source

DETECTION_DATASETS: dict[str, Callable[..., Source]] = {
    "coco": coco_boxes,
    "shapes": shapes_boxes,
    "voc": voc,
}
INSTANCE_DATASETS: dict[str, Callable[..., Source]] = {"coco": coco_masks, "shapes": shapes_masks}
KEYPOINT_DATASETS: dict[str, Callable[..., Source]] = {"coco": coco_keypoints}

__all__ = ["DETECTION_DATASETS", "INSTANCE_DATASETS", "KEYPOINT_DATASETS"]
