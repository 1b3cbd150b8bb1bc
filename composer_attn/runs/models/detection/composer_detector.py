"""A detector as a ComposerModel: the losses that torchvision defines, and average precision."""

import logging
from collections.abc import Mapping
from typing import Any

from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor, nn
from torchmetrics import Metric

from composer_attn.errors import ArgumentError
from composer_attn.runs.models.detection.weight_files import NO_FILES, Files, load_files

log = logging.getLogger(__name__)

# Entries of a target with a row for each object, that networks train on.
_TRAINED = ("boxes", "labels", "masks", "keypoints")

Target = Mapping[str, Tensor]


class Detector(ComposerModel):
    """One of torchvision's networks for objects in images.

    A batch is a list of images ``(3, H, W)`` with values from 0 to 1, of any sizes, and a list of
    targets; see :class:`~composer_attn.runs.data.detection.objects.Objects`.

    Args:
        network: returns its losses by name in training, and detections in evaluation.
        metrics: the metrics of an evaluation.
        files: weights to load once attention has been added.

    Attributes:
        module: the network.
    """

    def __init__(self, network: nn.Module, metrics: Mapping[str, Metric], files: Files = NO_FILES):
        super().__init__()
        self.module = network
        self._metrics = dict(metrics)
        self._files = files

    def forward(self, batch: Any) -> Any:
        """Return the losses by name in training, and detections in evaluation.

        Raises:
            ArgumentError: the objects have another number of keypoints than the network.
        """
        images, targets = batch
        self._check_keypoints(targets)
        return self.module(list(images), [trained_on(target) for target in targets])

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the network's losses by name; Composer logs each, and trains on their sum."""
        return dict(outputs)

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        """Return the detections in each image: ``boxes``, ``labels``, ``scores``, ..."""
        return self.module(list(batch[0])) if outputs is None else outputs

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Add the detections in a batch to a metric."""
        metric.update(outputs, batch[1])

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Return the metrics; losses alone are logged in training."""
        return {} if is_train else self._metrics

    def _check_keypoints(self, targets: Any) -> None:
        predictor = getattr(getattr(self.module, "roi_heads", None), "keypoint_predictor", None)
        if predictor is None:
            return
        own, points = predictor.kps_score_lowres.out_channels, targets[0]["keypoints"].shape[1]
        if own != points:
            raise ArgumentError(
                f"the data have objects with {points} keypoints, and the network has {own}: "
                f"model.num_keypoints={points}"
            )

    def after_surgery(self) -> None:
        """Load the files of weights, which may hold attention, into the attended network.

        Raises:
            CheckpointError: a file is of another network, damaged, or refers to code.
        """
        left = load_files(self.module, self._files)
        if left and dist.get_local_rank() == 0:
            log.warning(
                "the weights of %s are for another number of classes: %s keep their initial values",
                self._files.network, ", ".join(left),
            )  # fmt: skip


def trained_on(target: Target) -> dict[str, Tensor]:
    """Return what a network trains on in a target: all objects except crowds and similar."""
    kept = target["iscrowd"] == 0
    return {name: target[name][kept] for name in _TRAINED if name in target}
