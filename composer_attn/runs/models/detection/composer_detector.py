"""A detector as a ComposerModel: the losses that torchvision defines, and average precision."""

from collections.abc import Mapping
from typing import Any

from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric

from composer_attn.runs.models.weight_files import NO_FILES, Files, load_files

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
        """Return the losses by name in training, and detections in evaluation."""
        images, targets = batch
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

    @property
    def num_keypoints(self) -> int:
        """The number of keypoints of an object; 0 if the network places none."""
        predictor = getattr(getattr(self.module, "roi_heads", None), "keypoint_predictor", None)
        return 0 if predictor is None else predictor.kps_score_lowres.out_channels

    def after_surgery(self) -> None:
        """Load the files of weights, which may hold attention, into the attended network.

        Raises:
            CheckpointError: a file is of another network, damaged, or refers to code.
        """
        backbone: Any = self.module.backbone
        load_files(self.module, getattr(backbone, "body", backbone), self._files)


def trained_on(target: Target) -> dict[str, Tensor]:
    """Return what a network trains on in a target: all objects except crowds and similar."""
    kept = target["iscrowd"] == 0
    return {name: target[name][kept] for name in _TRAINED if name in target}
