"""The datasets of semantic segmentation: pairs of an image and a mask."""

from collections.abc import Callable

from composer_attn.runs.data.segmentation.mask_folder import mask_folder
from composer_attn.runs.data.segmentation.shapes import shapes_segmentation
from composer_attn.runs.data.segmentation.voc import voc_segmentation
from composer_attn.runs.data.source import Source

SEGMENTATION_DATASETS: dict[str, Callable[..., Source]] = {
    "mask_folder": mask_folder,
    "shapes_segmentation": shapes_segmentation,
    "voc_segmentation": voc_segmentation,
}

__all__ = ["SEGMENTATION_DATASETS"]
