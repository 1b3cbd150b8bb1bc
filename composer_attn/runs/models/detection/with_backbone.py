"""torchvision's heads on a backbone of one's choice, with all sizes to set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from composer_attn.checks import is_real, whole_number
from composer_attn.errors import ArgumentError
from composer_attn.runs.models.detection.backbones import (
    PyramidBackbone,
    build_body,
    freeze_stages,
)
from composer_attn.runs.models.detection.frozen_norms import freeze_norms
from composer_attn.runs.models.detection.published import named_weights
from composer_attn.runs.models.detection.signatures import described
from composer_attn.runs.models.weight_files import fill_backbone
from composer_attn.runs.models.weights import is_file

_TRAINABLE = 3
_LEVELS = 5  # feature maps of the pyramid, coarser ones included
_SIZES = (32, 64, 128, 256, 512)
_RATIOS = (0.5, 1.0, 2.0)
# Layers and, by default, channels of the heads for masks and keypoints, as torchvision's.
_MASK_LAYERS, _MASK_CHANNELS = 4, 256
_KEYPOINT_LAYERS, _KEYPOINT_CHANNELS = 8, 512
PRETRAINED = "DEFAULT"  # timm's weights for a network, by torchvision's name


@dataclass(frozen=True)
class Kind:
    """A network that takes any backbone.

    Attributes:
        cls: its class in torchvision.
        two_stage: whether it proposes boxes first, and then looks at each.
        scales: sizes of the anchors at each level, relative to ``anchor_sizes``.
    """

    cls: type[nn.Module]
    two_stage: bool = True
    scales: tuple[float, ...] = (1.0,)


KINDS = {
    "faster_rcnn": Kind(FasterRCNN),
    "fcos": Kind(FCOS, two_stage=False, scales=()),
    "keypoint_rcnn": Kind(KeypointRCNN),
    "mask_rcnn": Kind(MaskRCNN),
    "retinanet": Kind(RetinaNet, two_stage=False, scales=(1.0, 2 ** (1 / 3), 2 ** (2 / 3))),
}


def build_with_backbone(
    name: str,
    backbone: str = "resnet50",
    num_classes: int | None = None,
    weights: str | None = None,
    weights_backbone: str | None = None,
    trainable_backbone_layers: int | None = None,
    frozen_norms: bool | None = None,
    fpn_channels: int = 256,
    box_head_channels: int = 1024,
    mask_head_channels: int = _MASK_CHANNELS,
    keypoint_head_channels: int = _KEYPOINT_CHANNELS,
    anchor_sizes: Sequence[float] = _SIZES,
    aspect_ratios: Sequence[float] = _RATIOS,
    **arguments: Any,
) -> nn.Module:
    """Build a network on a backbone with a feature pyramid.

    Files of weights are not read here, but count as pretrained.

    Args:
        name: one of :data:`KINDS`.
        backbone: the name of a ResNet, or ``timm/NAME``.
        num_classes: number of classes of objects, without the background.
        weights: a file of weights of the whole network.
        weights_backbone: a file of weights of a classifier, or the name of published ones; for
            timm's networks ``DEFAULT``.
        trainable_backbone_layers: how many of the last stages of the backbone to train; if it is
            pretrained 3 by default, else all.
        frozen_norms: whether the backbone's norms keep their statistics and weights; by default
            if it is pretrained.
        fpn_channels: channels of the feature pyramid.
        box_head_channels: width of the head that classifies boxes; of two-stage networks.
        mask_head_channels: width of the head that draws masks; of Mask R-CNN.
        keypoint_head_channels: width of the head that places keypoints; of Keypoint R-CNN.
        anchor_sizes: sizes of the anchors at the five levels of the pyramid, in pixels; FCOS has
            none.
        aspect_ratios: height by width of the anchors.
        arguments: the network's own.

    Raises:
        ArgumentError: an argument is invalid.
        MissingExtraError: the backbone is timm's, and timm is not installed.
    """
    kind = KINDS[name]
    classes = whole_number("num_classes", 90 if num_classes is None else num_classes)
    channels = whole_number("fpn_channels", fpn_channels)
    body, widths = build_body(backbone, levels=4 if kind.two_stage else 3)
    pretrained = weights is not None or weights_backbone is not None
    stages = trainable_backbone_layers
    if pretrained or stages is not None:
        freeze_stages(body, _TRAINABLE if stages is None else stages)
    if weights_backbone is not None and not is_file(weights_backbone):
        _load_published(body, backbone, weights_backbone)
    if pretrained if frozen_norms is None else frozen_norms:
        freeze_norms(body)
    extra = LastLevelMaxPool() if kind.two_stage else LastLevelP6P7(channels, channels)
    pyramid = PyramidBackbone(body, widths, channels, extra)
    anchors = _anchors(kind, anchor_sizes, aspect_ratios)
    network: Any = kind.cls(pyramid, num_classes=classes + 1, **anchors, **arguments)
    if kind.two_stage:
        width = whole_number("box_head_channels", box_head_channels)
        network.roi_heads.box_head = TwoMLPHead(channels * 7**2, width)
        network.roi_heads.box_predictor = FastRCNNPredictor(width, classes + 1)
    if kind.cls is MaskRCNN:
        _set_mask_head(network.roi_heads, channels, mask_head_channels, classes)
    if kind.cls is KeypointRCNN:
        _set_keypoint_head(network.roi_heads, channels, keypoint_head_channels)
    return network


def _set_mask_head(heads: Any, channels: int, width: Any, classes: int) -> None:
    width = whole_number("mask_head_channels", width)
    heads.mask_head = MaskRCNNHeads(channels, (width,) * _MASK_LAYERS, 1)
    heads.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)


def _set_keypoint_head(heads: Any, channels: int, width: Any) -> None:
    width = whole_number("keypoint_head_channels", width)
    points = heads.keypoint_predictor.kps_score_lowres.out_channels
    heads.keypoint_head = KeypointRCNNHeads(channels, (width,) * _KEYPOINT_LAYERS)
    heads.keypoint_predictor = KeypointRCNNPredictor(width, points)


def check_published(backbone: str, weights: str) -> None:
    """Check that there are published weights of this name for a backbone.

    Raises:
        ArgumentError: there are none; the message says which ones there are.
    """
    if backbone.startswith("timm/"):
        if weights != PRETRAINED:
            raise ArgumentError(
                f"weights_backbone of {backbone} must be a file or {PRETRAINED}; got {weights!r}"
            )
    elif backbone not in torchvision.models.list_models():
        raise ArgumentError(f"weights_backbone of {backbone} must be a file; got {weights!r}")
    else:
        named_weights(backbone, weights)


def _load_published(body: nn.Module, backbone: str, weights: str) -> None:
    check_published(backbone, weights)
    if backbone.startswith("timm/"):
        import timm

        network = timm.create_model(
            backbone.removeprefix("timm/"), pretrained=True, features_only=True,
            out_indices=body.feature_info.out_indices,  # type: ignore[union-attr, arg-type]
        )  # fmt: skip
        body.load_state_dict(network.state_dict())
        return
    state = named_weights(backbone, weights).get_state_dict(progress=False, check_hash=True)
    fill_backbone(body, dict(state), weights)


def _anchors(kind: Kind, sizes: Any, ratios: Any) -> dict[str, AnchorGenerator]:
    if not kind.scales:
        return {}
    _check_positive("anchor_sizes", sizes)
    _check_positive("aspect_ratios", ratios)
    if len(sizes) != _LEVELS:
        raise ArgumentError(f"anchor_sizes must have {_LEVELS} numbers; got {sizes!r}")
    scaled = tuple(tuple(int(size * scale) for scale in kind.scales) for size in sizes)
    argument = "rpn_anchor_generator" if kind.two_stage else "anchor_generator"
    return {argument: AnchorGenerator(scaled, (tuple(ratios),) * _LEVELS)}


def _check_positive(argument: str, values: Any) -> None:
    if not isinstance(values, (list, tuple)) or not values:
        raise ArgumentError(f"{argument} must be a list of numbers; got {values!r}")
    if not all(is_real(value) and value > 0 for value in values):
        raise ArgumentError(f"{argument} must be numbers greater than 0; got {values!r}")


def _builder(name: str, kind: Kind) -> Callable[..., nn.Module]:
    own: dict[str, tuple[Any, Any]] = {
        "backbone": (str, "resnet50"),
        "num_classes": (int, 90),
        "trainable_backbone_layers": (int | None, None),
        "frozen_norms": (bool | None, None),
        "fpn_channels": (int, 256),
    }
    if kind.two_stage:
        own["box_head_channels"] = (int, 1024)
    if kind.scales:
        own |= {"anchor_sizes": (list, _SIZES), "aspect_ratios": (list, _RATIOS)}
    if kind.cls is MaskRCNN:
        own["mask_head_channels"] = (int, _MASK_CHANNELS)
    if kind.cls is KeypointRCNN:
        own |= {"num_keypoints": (int, 17), "keypoint_head_channels": (int, _KEYPOINT_CHANNELS)}
    return described(partial(build_with_backbone, name), kind.cls, own)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    name: _builder(name, kind) for name, kind in KINDS.items()
}
