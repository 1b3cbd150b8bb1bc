"""torchvision's detectors, with published weights, files, or a pretrained backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.functional.weights import fill
from composer_attn.runs.models.detection.backbones import freeze_stages
from composer_attn.runs.models.detection.frozen_norms import freeze_norms, set_epsilon, thaw_norms
from composer_attn.runs.models.detection.signatures import described
from composer_attn.runs.models.weights import is_file


@dataclass(frozen=True)
class Published:
    """A detector of torchvision's.

    Attributes:
        kind: its class.
        backbone: the classifier whose weights its backbone takes.
        frozen: whether the reference freezes the norms of a pretrained backbone.
        no_epsilon: weights that were trained with frozen norms that have no epsilon.
        pyramid: whether it has a feature pyramid; others take published weights alone.
        classes: number of classes that published weights are for.
    """

    kind: type[nn.Module]
    backbone: str = "resnet50"
    frozen: bool = True
    no_epsilon: tuple[str, ...] = ()
    pyramid: bool = True
    classes: int = 90


# Of the last stages of a pretrained backbone, as in torchvision's references.
_TRAINABLE = 3
_FIRST = ("COCO_V1",)
PUBLISHED = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(FasterRCNN, "mobilenet_v3_large"),
    "fasterrcnn_mobilenet_v3_large_fpn": Published(FasterRCNN, "mobilenet_v3_large"),
    "fasterrcnn_resnet50_fpn": Published(FasterRCNN, no_epsilon=_FIRST),
    "fasterrcnn_resnet50_fpn_v2": Published(FasterRCNN, frozen=False),
    "fcos_resnet50_fpn": Published(FCOS),
    "keypointrcnn_resnet50_fpn": Published(KeypointRCNN, no_epsilon=_FIRST, classes=1),
    "maskrcnn_resnet50_fpn": Published(MaskRCNN, no_epsilon=_FIRST),
    "maskrcnn_resnet50_fpn_v2": Published(MaskRCNN, frozen=False),
    "retinanet_resnet50_fpn": Published(RetinaNet, no_epsilon=_FIRST),
    "retinanet_resnet50_fpn_v2": Published(RetinaNet, frozen=False),
    "ssd300_vgg16": Published(SSD, "vgg16", frozen=False, pyramid=False),
    "ssdlite320_mobilenet_v3_large": Published(
        SSD, "mobilenet_v3_large", frozen=False, pyramid=False
    ),
}


def named_weights(model: str, weights: str) -> WeightsEnum:
    """Return the weights that torchvision publishes for a model under a name.

    Raises:
        ArgumentError: it publishes none; the message lists the valid names.
    """
    published = torchvision.models.get_model_weights(model)
    name = weights.rpartition(".")[2]
    if name not in published.__members__:
        valid = ", ".join(["a file", *sorted(published.__members__)])
        raise ArgumentError(f"weights of {model} must be one of {valid}; got {weights!r}")
    return published[name]


def build_published(
    name: str,
    num_classes: int | None = None,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: int | None = None,
    frozen_norms: bool | None = None,
    norm_eps: float | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build one of torchvision's detectors.

    Files of weights are not read here, but count as pretrained.

    Args:
        name: its name in torchvision.
        num_classes: number of classes of objects, without the background.
        weights: a file, or the name of published weights; if they are for another number of
            classes, the last layers keep their initial values.
        weights_backbone: the same for its backbone alone, a classifier.
        trainable_backbone_layers: how many of the last stages of the backbone to train; if it is
            pretrained 3 by default, else all.
        frozen_norms: whether the backbone's norms keep their statistics and weights; by default
            as in torchvision's reference if it is pretrained, else not.
        norm_eps: epsilon of frozen norms; by default torchvision's for the weights.
        arguments: the network's own.

    Raises:
        ArgumentError: an argument is invalid.
    """
    entry = PUBLISHED[name]
    classes = whole_number("num_classes", num_classes or entry.classes)
    build = torchvision.models.get_model_builder(name)
    whole, backbone = (None if is_file(w) else w for w in (weights, weights_backbone))
    pretrained = weights is not None or weights_backbone is not None
    if not entry.pyramid:
        _check_without_pyramid(name, frozen_norms, norm_eps, weights_backbone)
        options = {"trainable_backbone_layers": trainable_backbone_layers} if pretrained else {}
        arguments |= {n: v for n, v in options.items() if v is not None}
    bare = partial(build, weights=None, **arguments)
    network: Any = bare(
        weights_backbone=backbone and named_weights(entry.backbone, backbone),
        num_classes=classes + 1,
    )
    frozen = (entry.frozen and pretrained) if frozen_norms is None else frozen_norms
    if entry.pyramid:
        stages = trainable_backbone_layers
        if pretrained or stages is not None:
            freeze_stages(network.backbone.body, _TRAINABLE if stages is None else stages)
        _set_norms(network, frozen)
    if whole is not None:
        published = named_weights(name, whole)
        _fill(network, build(weights=published), whole, frozen)
        norm_eps = 0.0 if norm_eps is None and published.name in entry.no_epsilon else norm_eps
    if norm_eps is not None:
        set_epsilon(network.backbone, norm_eps)
    return network


def set_by_weights(name: str, weights: str | None, weights_backbone: str | None) -> dict[str, Any]:
    """Return the arguments that weights set by themselves, for building without them."""
    entry = PUBLISHED[name]
    if not entry.pyramid or (weights is None and weights_backbone is None):
        return {}
    found: dict[str, Any] = {"frozen_norms": entry.frozen}
    published = None if weights is None or is_file(weights) else named_weights(name, weights)
    bare = published is not None and published.name in entry.no_epsilon
    return found | ({"norm_eps": 0.0} if bare else {})


def _set_norms(network: Any, frozen: bool) -> None:
    (freeze_norms if frozen else thaw_norms)(network.backbone.body)


def _fill(network: nn.Module, reference: Any, weights: str, frozen: bool) -> None:
    """Copy a published network, except for last layers of another number of classes."""
    if hasattr(reference.backbone, "body"):
        _set_norms(reference, frozen)
    fill(network, reference.state_dict(), weights, new_classifier=True)


def _check_without_pyramid(
    name: str, frozen_norms: bool | None, norm_eps: float | None, weights_backbone: str | None
) -> None:
    if frozen_norms is not None or norm_eps is not None:
        raise ArgumentError(f"{name} has no frozen norms: leave out frozen_norms and norm_eps")
    if is_file(weights_backbone):
        raise ArgumentError(
            f"weights_backbone of {name} must be the name of published weights; got "
            f"{weights_backbone!r}"
        )


def _builder(name: str, entry: Published) -> Callable[..., nn.Module]:
    own: dict[str, tuple[Any, Any]] = {
        "num_classes": (int, entry.classes),
        "trainable_backbone_layers": (int | None, None),
        "frozen_norms": (bool | None, None),
        "norm_eps": (float | None, None),
    }
    if entry.kind is KeypointRCNN:
        own["num_keypoints"] = (int, 17)
    return described(partial(build_published, name), entry.kind, own)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    name: _builder(name, entry) for name, entry in PUBLISHED.items()
}
