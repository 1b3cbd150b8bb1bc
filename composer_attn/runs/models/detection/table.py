"""Networks for objects in images by name: torchvision's, and its heads on backbones to choose."""

from dataclasses import dataclass

from torch import nn
from torchvision.models.detection import FCOS, SSD, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet

# Arguments of torchvision's classes that are modules, which YAML cannot express, or that the table
# sets.
_MODULES = {
    "self", "backbone", "num_classes", "num_keypoints", "head", "anchor_generator", "size",
    "proposal_matcher", "kwargs", "rpn_anchor_generator", "rpn_head", "box_roi_pool", "box_head",
    "box_predictor", "mask_roi_pool", "mask_head", "mask_predictor", "keypoint_roi_pool",
    "keypoint_head", "keypoint_predictor",
}  # fmt: skip
_COCO_CLASSES = 90
_COCO_KEYPOINTS = 17


@dataclass(frozen=True)
class Published:
    """A network of torchvision's.

    Attributes:
        kind: its class.
        backbone: the classifier whose weights its backbone takes.
        frozen: whether the reference freezes the norms of a pretrained backbone.
        trainable: how many stages of a pretrained backbone the reference trains.
        no_epsilon: names of weights that were trained with frozen norms without an epsilon.
        pyramid: whether it has a feature pyramid; others take published weights alone.
    """

    kind: type[nn.Module]
    backbone: str = "resnet50"
    frozen: bool = True
    trainable: int = 3
    no_epsilon: tuple[str, ...] = ()
    pyramid: bool = True


PUBLISHED = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": Published(FasterRCNN, "mobilenet_v3_large"),
    "fasterrcnn_mobilenet_v3_large_fpn": Published(FasterRCNN, "mobilenet_v3_large"),
    "fasterrcnn_resnet50_fpn": Published(FasterRCNN, no_epsilon=("COCO_V1",)),
    "fasterrcnn_resnet50_fpn_v2": Published(FasterRCNN, frozen=False),
    "fcos_resnet50_fpn": Published(FCOS),
    "keypointrcnn_resnet50_fpn": Published(KeypointRCNN, no_epsilon=("COCO_V1",)),
    "maskrcnn_resnet50_fpn": Published(MaskRCNN, no_epsilon=("COCO_V1",)),
    "maskrcnn_resnet50_fpn_v2": Published(MaskRCNN, frozen=False),
    "retinanet_resnet50_fpn": Published(RetinaNet, no_epsilon=("COCO_V1",)),
    "retinanet_resnet50_fpn_v2": Published(RetinaNet, frozen=False),
    "ssd300_vgg16": Published(SSD, "vgg16", frozen=False, trainable=4, pyramid=False),
    "ssdlite320_mobilenet_v3_large": Published(
        SSD, "mobilenet_v3_large", frozen=False, trainable=6, pyramid=False
    ),
}
