"""The networks that every surgery is tested on: one small member of each family.

A family is a module of ``torchvision.models`` or ``timm.models``; where a module has several kinds
of network in it, each of them is one more row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import timm
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import video

from tests.families.torchvision_networks import FAMILIES


@dataclass(frozen=True)
class Row:
    """A network and its input.

    Attributes:
        name: of the network; timm's begin with ``timm/``.
        size: sides of its image, or clip.
        arguments: what makes it small.
        min_channels: so many that some sites are chosen.
        kind: how it is fed: images, or images with boxes to train on.
        batch: how many; batch norms need two of small images.
    """

    name: str
    size: tuple[int, ...] = (64, 64)
    arguments: dict = field(default_factory=dict)
    min_channels: int = 64
    kind: str = "images"
    batch: int = 2


def _row(name: str, side: int = 64, **options) -> Row:
    return Row(name, (side, side), options)


_CLASSIFICATION = [
    Row(family.member, (family.side, family.side), family.arguments) for family in FAMILIES.values()
]

_NO_WEIGHTS = {"weights": None, "weights_backbone": None}
_SEGMENTATION = [
    Row(name, (64, 64), {**_NO_WEIGHTS, "num_classes": 5})
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
]
_SMALL = {"min_size": 64, "max_size": 64}
# Few boxes, of which none is dropped for its score.
_BOXES = {"score_thresh": 0.0, "detections_per_img": 4}
_REGIONS = {
    **{f"box_{key}": value for key, value in _BOXES.items()},
    **{f"rpn_post_nms_top_n_{mode}": 16 for mode in ("train", "test")},
}
_DETECTION = [
    Row(name, (side, side), {**_NO_WEIGHTS, "num_classes": 3, **arguments}, 64, "boxes", batch)
    for name, side, batch, arguments in (
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 64, 2, {**_SMALL, **_REGIONS}),
        ("fcos_resnet50_fpn", 64, 2, {**_SMALL, **_BOXES}),
        ("keypointrcnn_resnet50_fpn", 64, 2, {**_SMALL, **_REGIONS}),
        ("maskrcnn_resnet50_fpn_v2", 64, 2, {**_SMALL, **_REGIONS}),
        ("retinanet_resnet50_fpn_v2", 64, 2, {**_SMALL, **_BOXES}),
        ("ssd300_vgg16", 300, 1, _BOXES),
        ("ssdlite320_mobilenet_v3_large", 320, 2, _BOXES),
    )
]
# Its builders take no size.
_MVIT = {
    "spatial_size": (64, 64),
    "temporal_size": 4,
    "block_setting": [
        video.mvit.MSBlockConfig(1, 96, 192, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        video.mvit.MSBlockConfig(2, 192, 192, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ],
    "residual_pool": True,
    "residual_with_cls_embed": False,
    "rel_pos_embed": True,
    "proj_after_attn": True,
}
_VIDEO = [
    Row("mc3_18", (4, 32, 32)),
    Row("MViT", (4, 64, 64), _MVIT),
    Row("r2plus1d_18", (4, 32, 32)),
    Row("r3d_18", (4, 32, 32)),
    Row("s3d", (16, 224, 224), batch=1),
    Row("swin3d_t", (4, 32, 32)),
]

TORCHVISION = [*_CLASSIFICATION, *_SEGMENTATION, *_DETECTION, *_VIDEO]

TIMM = [
    _row("timm/bat_resnext26ts", 256),
    _row("timm/botnet26t_256", 256),
    _row("timm/coat_tiny", 224),
    _row("timm/coatnet_nano_cc_224", 224),
    _row("timm/coatnext_nano_rw_224", 224),
    _row("timm/convmixer_768_32"),
    _row("timm/convnext_atto"),
    _row("timm/convnextv2_atto"),
    _row("timm/convformer_s18"),
    _row("timm/cpubone_nano"),
    _row("timm/cs3darknet_focus_s"),
    _row("timm/csatv2", 512),
    _row("timm/cspdarknet53"),
    _row("timm/cspnext_tiny"),
    _row("timm/cspresnet50"),
    _row("timm/darknet17"),
    _row("timm/davit_tiny", 64),
    _row("timm/densenet121"),
    _row("timm/dla46x_c"),
    _row("timm/dpn48b"),
    _row("timm/edgenext_xx_small"),
    _row("timm/efficientformer_l1", 224),
    _row("timm/efficientformerv2_s0", 224),
    _row("timm/efficientnet_b0"),
    _row("timm/efficientnet_es"),
    _row("timm/efficientnetv2_rw_t"),
    _row("timm/efficientvim_m1"),
    _row("timm/efficientvit_b0"),
    _row("timm/efficientvit_m0", 224),
    _row("timm/ese_vovnet19b_slim_dw"),
    _row("timm/fasternet_t0"),
    _row("timm/fastvit_t8"),
    _row("timm/fbnetc_100"),
    _row("timm/fbnetv3_b"),
    _row("timm/focalnet_tiny_srf"),
    _row("timm/gcvit_xxtiny", 224),
    _row("timm/gernet_s"),
    _row("timm/ghostnet_050"),
    _row("timm/ghostnetv2_100"),
    _row("timm/ghostnetv3_050"),
    _row("timm/halonet_h1", 256),
    _row("timm/hardcorenas_b"),
    _row("timm/hgnet_tiny"),
    _row("timm/hgnetv2_b0"),
    _row("timm/hrnet_w18_small"),
    _row("timm/iformer_t"),
    _row("timm/inception_next_atto"),
    _row("timm/inception_resnet_v2", 96),
    _row("timm/inception_v3", 96),
    _row("timm/inception_v4", 96),
    _row("timm/lambda_resnet26t", 256),
    _row("timm/lcnet_035"),
    _row("timm/lcnetv2_small"),
    _row("timm/legacy_seresnet18"),
    _row("timm/legacy_xception"),
    _row("timm/lowformer_b0"),
    _row("timm/mambaout_femto"),
    _row("timm/maxvit_rmlp_pico_rw_256", 256),
    _row("timm/mixnet_s"),
    _row("timm/mnasnet_small"),
    _row("timm/mobilenet_edgetpu_100"),
    _row("timm/mobilenetv1_100"),
    _row("timm/mobilenetv2_035"),
    _row("timm/mobilenetv3_small_050"),
    _row("timm/mobilenetv4_conv_small_035"),
    _row("timm/mobilenetv4_hybrid_medium"),
    _row("timm/mobilenetv5_base"),
    _row("timm/mobileone_s0"),
    _row("timm/mobilevit_xxs"),
    _row("timm/mobilevitv2_050"),
    _row("timm/nasnetalarge", 96, num_features=384, stem_size=16),
    _row("timm/nextvit_small"),
    _row("timm/nf_regnet_b0"),
    _row("timm/nf_resnet26"),
    _row("timm/dm_nfnet_f0"),
    _row("timm/pnasnet5large", 96),
    _row("timm/poolformer_s12"),
    _row("timm/pvt_v2_b0"),
    _row("timm/rdnet_tiny"),
    _row("timm/regnetx_002"),
    _row("timm/regnety_002"),
    _row("timm/regnetz_005"),
    _row("timm/repghostnet_050"),
    _row("timm/repvgg_a0"),
    _row("timm/repvit_m1"),
    _row("timm/res2next50"),
    _row("timm/resnest14d"),
    _row("timm/resnet10t"),
    _row("timm/resnext26ts"),
    _row("timm/resnetv2_18"),
    _row("timm/rexnet_100"),
    _row("timm/selecsls42"),
    _row("timm/semnasnet_050"),
    _row("timm/shvit_s1"),
    _row("timm/skresnet18"),
    _row("timm/spnasnet_100"),
    _row("timm/starnet_s050"),
    _row("timm/swiftformer_xs", 224),
    _row("timm/tiny_vit_5m_224", 224),
    _row("timm/tinynet_e"),
    _row("timm/tresnet_m"),
    _row("timm/vgg11", mlp_ratio=1 / 64),
    _row("timm/visformer_tiny", 224),
    _row("timm/vitamin_small_224", 224),
    _row("timm/xception41p"),
    _row("timm/xcit_nano_12_p8_224"),
]

ROWS = [*TORCHVISION, *TIMM]

# Where no norm follows a convolution as the next child of the same module.
WITHOUT_NORMS = {
    "alexnet", "convnext_tiny", "squeezenet1_1", "swin_t", "vgg11", "vit_b_32",
    "ssd300_vgg16", "swin3d_t", "MViT", "timm/coat_tiny", "timm/coatnext_nano_rw_224",
    "timm/convmixer_768_32", "timm/convnext_atto", "timm/convnextv2_atto",
    "timm/convformer_s18", "timm/csatv2", "timm/davit_tiny", "timm/dpn48b",
    "timm/edgenext_xx_small", "timm/focalnet_tiny_srf", "timm/gcvit_xxtiny",
    "timm/inception_next_atto", "timm/mambaout_femto", "timm/mobilenetv5_base",
    "timm/nf_regnet_b0", "timm/nf_resnet26", "timm/dm_nfnet_f0", "timm/poolformer_s12",
    "timm/pvt_v2_b0", "timm/rdnet_tiny", "timm/vgg11", "timm/vitamin_small_224",
    "timm/xception41p",
}  # fmt: skip


def family_of(row: Row) -> str:
    """Name the module of torchvision or timm that a network comes from."""
    name = row.name.removeprefix("timm/")
    if name == "MViT":
        return "torchvision.models.video.mvit"
    if name != row.name:
        return timm.models.model_entrypoint(name).__module__
    return models.get_model_builder(name).__module__


def build(row: Row) -> nn.Module:
    """Build a network with random weights."""
    arguments = dict(row.arguments)
    if row.name.startswith("timm/"):
        return timm.create_model(row.name.removeprefix("timm/"), pretrained=False, **arguments)
    if row.name == "MViT":
        return video.MViT(**arguments)
    if row.name.startswith("vit_"):
        arguments["image_size"] = row.size[0]
    return models.get_model(row.name, **{"weights": None, **arguments})


def run(row: Row, network: nn.Module, seed: int = 0) -> list[Tensor]:
    """Return a network's output for a batch; for a detector in training, its losses."""
    torch.manual_seed(seed)
    x = torch.randn(row.batch, 3, *row.size)
    if row.kind == "images":
        return list(tensors(network(x)))
    torch.manual_seed(seed)  # detectors draw proposals
    return list(tensors(network(list(x.sigmoid()), targets(row) if network.training else None)))


def targets(row: Row) -> list[dict[str, Tensor]]:
    """Two objects in each image, in every format that a detector may require."""
    side = row.size[-1]
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * side
    points = torch.tensor([0.4, 0.5, 1 / side]) * side
    return [
        {
            "boxes": boxes,
            "labels": torch.tensor([1, 2]),
            "masks": torch.ones(2, side, side, dtype=torch.uint8),
            "keypoints": points.expand(2, 17, 3),
        }
        for _ in range(row.batch)
    ]


def tensors(output) -> Iterator[Tensor]:
    """Yield all floating tensors of an output, however they are packed."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for part in output.values():
            yield from tensors(part)
    else:
        for part in output:
            yield from tensors(part)


def table() -> str:
    """Return the table in docs/published.md of the networks tested from each family."""
    lines = ["| library, task | families | networks |", "|---|---|---|"]
    for title, rows in (
        ("torchvision, classification", _CLASSIFICATION),
        ("torchvision, segmentation", _SEGMENTATION),
        ("torchvision, detection", _DETECTION),
        ("torchvision, video", _VIDEO),
        ("timm, classification", TIMM),
    ):
        names = ", ".join(row.name.removeprefix("timm/") for row in rows)
        lines.append(f"| {title} | {len({family_of(row) for row in rows})} | {names} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
