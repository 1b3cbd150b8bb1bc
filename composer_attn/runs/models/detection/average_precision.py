"""Average precision of detections, as COCO defines it, computed by torchmetrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision

from composer_attn.extras import naming_the_extra

_ENTRIES = ("boxes", "labels", "scores", "masks", "iscrowd", "area")
# COCO's main figures: over overlaps of 0.5 to 0.95, at single ones, and by size of the objects.
_FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
_MASK_THRESHOLD = 0.5
_ABSENT = -1.0  # COCO's figure where there is no object

Results = Mapping[str, Tensor]


class Figure(Metric):
    """One figure of an evaluation that computes several, since Composer logs single numbers.

    Args:
        evaluation: collects detections, and returns figures by name.
        key: the name of the figure.
        leads: whether it updates and resets the evaluation; one of those that share it does.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, evaluation: Metric, key: str, leads: bool):
        super().__init__()
        self.evaluation, self.key, self.leads = evaluation, key, leads

    def update(self, detections: Sequence[Results], targets: Sequence[Results]) -> None:
        """Add the detections in images, and what is in them."""
        if self.leads:
            self.evaluation.update(detections, targets)

    def compute(self) -> Tensor:
        """Return the figure, from 0 to 1; nan if there is no object of its kind."""
        value = self.evaluation.compute()[self.key].float().reshape(())
        return torch.where(value == _ABSENT, torch.nan, value)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        if self.leads:
            self.evaluation.reset()


class Gathered(Metric):
    """A metric whose states are lists with an entry for each image, of which ranks may differ.

    torchmetrics gathers such lists entry by entry, and waits forever for a rank with fewer of them.
    """

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        for name in self._reductions:
            ranks = dist.all_gather_object(_on_cpu(getattr(self, name)))
            setattr(self, name, [entry for entries in ranks for entry in entries])


class BoxPrecision(Gathered, MeanAveragePrecision):
    """torchmetrics' average precision, of the detections of torchvision's networks."""

    warn_on_many_detections = False  # beyond 100 in an image, COCO takes the best

    def update(self, detections: Any, targets: Any) -> None:
        """Add the detections in images, and what is in them."""
        found = [_cleaned(each, masked=True) for each in detections]
        super().update(found, [_cleaned(each) for each in targets])


def figures_of(evaluation: Metric, keys: Mapping[str, str]) -> dict[str, Metric]:
    """Return metrics that share an evaluation, by the names under which they are logged.

    Args:
        evaluation: the evaluation.
        keys: for each name, the evaluation's name of the figure.
    """
    return {
        name: Figure(evaluation, key, leads=position == 0)
        for position, (name, key) in enumerate(keys.items())
    }


def box_metrics() -> dict[str, Metric]:
    """Return the average precision of boxes.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    check_installed()
    evaluation = BoxPrecision(iou_type="bbox", backend="faster_coco_eval")
    return figures_of(evaluation, {key: key for key in _FIGURES})


def mask_metrics() -> dict[str, Metric]:
    """Return the average precision of masks, ``mask_map`` and so on, and of boxes.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
    """
    check_installed()
    evaluation = BoxPrecision(iou_type=("bbox", "segm"), backend="faster_coco_eval")
    keys = {f"mask_{key}": f"segm_{key}" for key in _FIGURES}
    return figures_of(evaluation, keys | {key: f"bbox_{key}" for key in _FIGURES})


def check_installed() -> None:
    """Check that the library that computes average precision is installed.

    Raises:
        MissingExtraError: it is not.
    """
    with naming_the_extra("average precision"):
        import faster_coco_eval  # noqa: F401


def _cleaned(each: Results, masked: bool = False) -> dict[str, Tensor]:
    """Return what the metric needs, with masks of probabilities made binary."""
    kept = {name: each[name].detach() for name in _ENTRIES if name in each}
    if masked and "masks" in kept:
        kept["masks"] = kept["masks"].squeeze(1) > _MASK_THRESHOLD
    elif "masks" in kept:
        kept["masks"] = kept["masks"].bool()
    return kept


def _on_cpu(entries: Sequence[Any]) -> list[Any]:
    return [each.cpu() if isinstance(each, Tensor) else each for each in entries]
