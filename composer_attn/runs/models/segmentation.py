"""Semantic segmentation: torchvision's networks, and its heads on ResNets, as ComposerModels."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
import torchvision
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.models import segmentation

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.functional.weights import fill
from composer_attn.runs.models.segmentation_heads import deeplabv3, fcn, lraspp
from composer_attn.runs.models.weight_files import NO_FILES, Files, fill_backbone, load_files
from composer_attn.runs.models.weights import (
    check_published,
    classes_of,
    is_file,
    published_weights,
)

# Pixels of no class: borders of objects in Pascal VOC, and what pads an image.
IGNORED = 255
# As in the scripts that torchvision's published networks were trained with.
AUXILIARY_WEIGHT = 0.5
_AUXILIARY = "aux_classifier."

# Arguments of a model section besides the network's own.
SEGMENTATION_ARGUMENTS = {"weights": str | None, "weights_backbone": str | None}


def _torchvisions(name: str) -> Callable[..., nn.Module]:
    """Return the builder of a network of torchvision's, which downloads nothing."""
    nothing: dict[str, Any] = {"weights": None, "weights_backbone": None}

    def build(num_classes: int = 21, aux_loss: bool = False) -> nn.Module:
        return segmentation.__dict__[name](num_classes=num_classes, aux_loss=aux_loss, **nothing)

    def build_without_auxiliary(num_classes: int = 21) -> nn.Module:
        return segmentation.__dict__[name](num_classes=num_classes, **nothing)

    return build_without_auxiliary if name.startswith("lraspp") else build


SEGMENTATION_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "deeplabv3": deeplabv3,
    "fcn": fcn,
    "lraspp": lraspp,
    **{name: _torchvisions(name) for name in torchvision.models.list_models(module=segmentation)},
}


class SegmentationModel(ComposerModel):
    """A network that classifies pixels, with its loss and its metrics.

    The loss is that of torchvision's reference: the cross entropy of the pixels that have a class,
    plus half of that of the auxiliary classifier, if the network has one.

    Args:
        module: maps images ``(N, 3, H, W)`` to ``{"out": logits}``, ``(N, classes, H, W)``, and
            maybe ``"aux"`` likewise.
        num_classes: number of classes, the background included.
        files: weights to load once attention has been added.
    """

    def __init__(self, module: nn.Module, num_classes: int, files: Files = NO_FILES):
        super().__init__()
        self.module = module
        self._files = files
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORED}
        self._metrics: dict[str, Metric] = {
            "mean_iou": MulticlassJaccardIndex(**options),
            "pixel_accuracy": MulticlassAccuracy(**options, average="micro"),
        }

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the logits of a batch of images and masks."""
        outputs: dict[str, Tensor] = self.module(batch[0])
        return outputs

    def loss(self, outputs: Mapping[str, Tensor], batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of a batch; zero if none of its pixels has a class."""
        masks = batch[1].long()
        loss = pixel_loss(outputs["out"], masks)
        if "aux" in outputs:
            loss = loss + AUXILIARY_WEIGHT * pixel_loss(outputs["aux"], masks)
        return loss

    def eval_forward(self, batch: Any, outputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the logits ``(N, classes, H, W)`` of the main classifier."""
        found = self.forward(batch) if outputs is None else outputs
        return found["out"]

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        """Return the metrics of an evaluation; in training there are none, as they take time."""
        return {} if is_train else dict(self._metrics)

    def update_metric(self, batch: Any, outputs: Any, metric: Metric) -> None:
        """Add a batch to a metric."""
        metric.update(outputs, batch[1].long())

    def after_surgery(self) -> None:
        """Load the files of weights, which may hold attention, into the attended network.

        Raises:
            CheckpointError: a file is of another network, damaged, or refers to code.
        """
        backbone: Any = self.module.backbone
        load_files(self.module, backbone, self._files)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross entropy over the pixels that have a class; zero if there are none.

    Args:
        logits: ``(N, classes, H, W)``.
        masks: ``(N, H, W)``, the index of a class for each pixel, or :data:`IGNORED`.

    Example:
        >>> import torch
        >>> logits, masks = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]])
        >>> round(pixel_loss(logits, masks).item(), 4)
        0.6931
    """
    total = F.cross_entropy(logits.float(), masks, ignore_index=IGNORED, reduction="sum")
    return total / (masks != IGNORED).sum().clamp(min=1)


def build_segmentation_model(section: dict[str, Any]) -> SegmentationModel:
    """Build the network of a section with its weights, loss and metrics.

    Args:
        section: ``{name, num_classes, aux_loss, weights, weights_backbone, ...}``. ``weights`` is a
            file, or the name of weights that torchvision publishes; those of a classifier for other
            classes are left out. ``weights_backbone`` is likewise of an image classifier. Files are
            not read here, but once attention, which they may hold, has been added.

    Raises:
        ArgumentError: an argument is invalid, or both kinds of weights are given.
    """
    weights, backbone = section.get("weights"), section.get("weights_backbone")
    own = {k: v for k, v in section.items() if k not in ("name", *SEGMENTATION_ARGUMENTS)}
    arguments = segmentation_arguments_by_weights(section) | own
    num_classes = whole_number("num_classes", segmentation_classes(section), 2, IGNORED)
    network = SEGMENTATION_MODELS[section["name"]](**arguments | {"num_classes": num_classes})
    files = Files(*(given if is_file(given) else None for given in (weights, backbone)))
    if weights is not None and files.network is None:
        _fill(network, section["name"], weights)
    if backbone is not None and files.backbone is None:
        _fill_backbone(network, backbone_of(section), backbone)
    return SegmentationModel(network, num_classes, files)


def segmentation_classes(section: Mapping[str, Any]) -> int:
    """Return the number of classes of a model section, or its network's default."""
    given = section.get("num_classes")
    if given is not None:
        return given
    parameters = inspect.signature(SEGMENTATION_MODELS[section["name"]]).parameters
    return parameters["num_classes"].default


def with_segmentation_classes(section: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Return a model section with the data's number of classes, if it does not set one.

    With published weights the number of classes that they were trained for is kept.
    """
    if section.get("num_classes") is not None:
        return section
    weights = section.get("weights")
    if weights is not None and not is_file(weights):
        return section | {"num_classes": classes_of(section["name"], weights)}
    return section | {"num_classes": num_classes}


def segmentation_arguments_by_weights(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that published weights set: they come with an auxiliary classifier."""
    weights = section.get("weights")
    if weights is None or is_file(weights):
        return {}
    parameters = inspect.signature(SEGMENTATION_MODELS[section["name"]]).parameters
    return {"aux_loss": True} if "aux_loss" in parameters else {}


def check_segmentation_weights(section: Mapping[str, Any]) -> None:
    """Check that the weights of a model section exist, without reading them.

    Raises:
        ArgumentError: there is no such file, torchvision publishes none of this name, or both kinds
            are given.
    """
    weights, backbone = section.get("weights"), section.get("weights_backbone")
    if weights is not None and backbone is not None:
        raise ArgumentError("weights include those of the backbone: leave out weights_backbone")
    named = {section["name"]: weights, backbone_of(section): backbone}
    for model, given in named.items():
        if is_file(given) and not Path(given).is_file():
            raise ArgumentError(f"there is no file {given!r}")
        if given is not None and not is_file(given):
            check_published(model, given)


def backbone_of(section: Mapping[str, Any]) -> str:
    """Return the name of the image classifier that a section's network is built on."""
    name = section["name"]
    parameters = inspect.signature(SEGMENTATION_MODELS[name]).parameters
    if "backbone" in parameters:
        return section.get("backbone", parameters["backbone"].default)
    return name.partition("_")[2]


def _fill(network: nn.Module, name: str, weights: str) -> None:
    state = published_weights(name, weights).get_state_dict(progress=False, check_hash=True)
    has_auxiliary = any(key.startswith(_AUXILIARY) for key in network.state_dict())
    fill(network, state, weights, () if has_auxiliary else (_AUXILIARY,), new_classifier=True)


def _fill_backbone(network: Any, name: str, weights: str) -> None:
    """Load the published weights of an image classifier, except for its last layers."""
    state = published_weights(name, weights).get_state_dict(progress=False, check_hash=True)
    fill_backbone(network.backbone, state, weights)
