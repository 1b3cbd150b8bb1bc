"""Backbones with a feature pyramid, of ResNets and of timm's networks."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from composer_attn.checks import unknown, whole_number
from composer_attn.errors import ArgumentError
from composer_attn.extras import naming_the_extra
from composer_attn.runs.models.table import MODELS, resnet10

_TIMM = "timm/"
# Feature maps start at the fourth of the image's size: earlier ones take much memory.
_FINEST = 4
# The ResNet family, by name: all others are timm's.
RESNETS = tuple(
    name
    for name in ("resnet10", *torchvision.models.list_models(module=torchvision.models))
    if name.startswith(("resnet", "resnext", "wide_resnet"))
)


class PyramidBackbone(nn.Module):
    """A network's feature maps, merged from coarse to fine: what torchvision's heads take.

    `Lin et al., 2017 <https://arxiv.org/abs/1612.03144>`_.

    Args:
        body: maps images ``(N, 3, H, W)`` to feature maps, fine to coarse, in a dict or list.
        channels: the channels of each.
        out_channels: the channels of all maps of the pyramid.
        extra: makes coarser maps.

    Attributes:
        body: the network.
        fpn: the pyramid.
        out_channels: the channels of its maps.
    """

    def __init__(
        self, body: nn.Module, channels: Sequence[int], out_channels: int, extra: ExtraFPNBlock
    ):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(channels), out_channels, extra)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of the pyramid by name, fine to coarse."""
        maps = self.body(images)
        if not isinstance(maps, dict):
            maps = OrderedDict((str(level), each) for level, each in enumerate(maps))
        return self.fpn(maps)


def build_body(name: str, levels: int) -> tuple[nn.Module, list[int]]:
    """Build a network without its classifier, and return the channels of its feature maps.

    Args:
        name: one of :data:`RESNETS`, or ``timm/NAME``.
        levels: the number of maps: the last of those at 1/4, 1/8, 1/16, 1/32 of the image's size.

    Raises:
        ArgumentError: there is no such network, or it has too few such feature maps.
        MissingExtraError: timm is not installed.
    """
    if name.startswith(_TIMM):
        return _timms(name, levels)
    if name not in RESNETS:
        raise ArgumentError(unknown("backbone", name, [*RESNETS, "timm/NAME"]))
    network: Any = resnet10() if name == "resnet10" else MODELS[name]()
    return _resnets(network, levels)


def _resnets(network: ResNet, levels: int) -> tuple[nn.Module, list[int]]:
    stages = range(4 - levels + 1, 5)
    body = IntermediateLayerGetter(network, {f"layer{s}": str(i) for i, s in enumerate(stages)})
    return body, [network.inplanes >> (4 - stage) for stage in stages]


def _timms(name: str, levels: int) -> tuple[nn.Module, list[int]]:
    with naming_the_extra("backbones named timm/..."):
        import timm
    model = name.removeprefix(_TIMM)
    if not timm.is_model(model):
        raise ArgumentError(unknown("backbone", name, [f"{_TIMM}{n}" for n in timm.list_models()]))
    try:
        features: Any = timm.create_model(model, features_only=True).feature_info
        kept = [i for i, step in enumerate(features.reduction()) if step >= _FINEST][-levels:]
        body: Any = timm.create_model(model, features_only=True, out_indices=kept)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        raise ArgumentError(f"backbone {name} has no feature maps for a pyramid: {error}") from None
    if len(kept) < levels:
        raise ArgumentError(f"backbone {name} has {len(kept)} feature maps; {levels} are needed")
    return body, list(body.feature_info.channels())


def stages_of(body: nn.Module) -> list[list[str]]:
    """Return the names of the children of a body, by the stage that they belong to, first to last.

    ResNets have five, as torchvision counts them: the stem and ``layer1`` to ``layer4``. In other
    networks a stage ends with a feature map, or begins where torchvision marks a stride.
    """
    children = list(dict(body.named_children()))
    info = getattr(body, "feature_info", None)
    if "layer1" in children and "layer4" in children:
        starts = [name for name in children if name.startswith("layer")]
    elif info is not None:
        ends = [str(name).partition(".")[0] for name in info.module_name()]
        starts = [children[children.index(n) + 1] for n in ends if n != children[-1]]
    else:
        starts = [name for name, c in body.named_children() if getattr(c, "_is_cn", False)]
        starts += children[-1:]
    stages: list[list[str]] = [[]]
    for name in children:
        if name in starts and stages[-1]:
            stages.append([])
        stages[-1].append(name)
    return stages


def freeze_stages(body: nn.Module, trainable: int) -> None:
    """Freeze the parameters of all but the last stages of a body.

    Args:
        body: the network below the pyramid.
        trainable: the number of stages to train, counted from the last.

    Raises:
        ArgumentError: it has fewer stages.
    """
    stages = stages_of(body)
    whole_number("trainable_backbone_layers", trainable, minimum=0, maximum=len(stages))
    for name in (name for stage in stages[: len(stages) - trainable] for name in stage):
        body.get_submodule(name).requires_grad_(False)
