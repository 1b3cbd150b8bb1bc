"""torchvision's segmentation heads on any of its ResNets, also on those with basic blocks.

torchvision builds them on ResNet-50 and 101 alone, whose bottlenecks can be dilated; the small ones
train in minutes on a CPU.
"""

from typing import Any

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import ResNet
from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from composer_attn.checks import unknown
from composer_attn.errors import ArgumentError
from composer_attn.runs.models.table import MODELS

_STRIDES = (8, 16, 32)


def deeplabv3(
    num_classes: int = 21,
    backbone: str = "resnet18",
    aux_loss: bool = False,
    output_stride: int = 8,
) -> nn.Module:
    """Build DeepLabV3 (Chen et al., 2017) on a ResNet.

    Args:
        num_classes: number of classes, the background included.
        backbone: name of a ResNet: ``resnet10``, ``resnet18``, ``resnext50_32x4d``, ...
        aux_loss: whether to add an auxiliary classifier after the third stage.
        output_stride: pixels of the image for each of the last feature map: 8, 16 or 32.

    Raises:
        ArgumentError: the backbone is no ResNet, or there is no such stride.

    Example:
        >>> import torch
        >>> network = deeplabv3(num_classes=4, backbone="resnet10").eval()
        >>> network(torch.zeros(1, 3, 64, 64))["out"].shape
        torch.Size([1, 4, 64, 64])
    """
    features, channels = _resnet(backbone, output_stride, _layers(aux_loss))
    auxiliary = FCNHead(channels // 2, num_classes) if aux_loss else None
    return DeepLabV3(features, DeepLabHead(channels, num_classes), auxiliary)


def fcn(
    num_classes: int = 21,
    backbone: str = "resnet18",
    aux_loss: bool = False,
    output_stride: int = 8,
) -> nn.Module:
    """Build a fully convolutional network (Long et al., 2015) on a ResNet, as :func:`deeplabv3`."""
    features, channels = _resnet(backbone, output_stride, _layers(aux_loss))
    auxiliary = FCNHead(channels // 2, num_classes) if aux_loss else None
    return FCN(features, FCNHead(channels, num_classes), auxiliary)


def lraspp(num_classes: int = 21, backbone: str = "resnet18", output_stride: int = 16) -> nn.Module:
    """Build Lite R-ASPP (Howard et al., 2019) on a ResNet, as :func:`deeplabv3`.

    Beside the last feature map it takes that of the second stage, of stride 8.
    """
    layers = {"layer2": "low", "layer4": "high"}
    features, channels = _resnet(backbone, output_stride, layers)
    return LRASPP(features, channels // 4, channels, num_classes)


def _layers(aux_loss: bool) -> dict[str, str]:
    return {"layer4": "out"} | ({"layer3": "aux"} if aux_loss else {})


def _resnet(name: str, stride: int, layers: dict[str, str]) -> tuple[nn.Module, int]:
    """Return the stages of a ResNet, and the number of channels of the last one.

    Args:
        name: its name.
        stride: of the last stage.
        layers: stages to return, with the names of their feature maps.
    """
    if stride not in _STRIDES:
        raise ArgumentError(f"output_stride must be 8, 16 or 32; got {stride!r}")
    if name not in MODELS:
        resnets = [each for each in MODELS if each.startswith(("resnet", "resnext", "wide_resnet"))]
        raise ArgumentError(unknown("backbone", name, resnets))
    network: Any = MODELS[name]()
    if not isinstance(network, ResNet):
        raise ArgumentError(f"backbone must be a ResNet, like resnet10 or resnet50; got {name!r}")
    # Strides 16 and 8 are those of the last one or two stages, dilated by as much.
    dilation = 1
    for stage, reached in ((network.layer3, 16), (network.layer4, 32)):
        if reached > stride:
            _dilate(stage, dilation, 2 * dilation)
            dilation *= 2
    return IntermediateLayerGetter(network, layers), network.fc.in_features


def _dilate(stage: nn.Module, before: int, after: int) -> None:
    """Replace the stride of a stage by dilation; its first block has that of the stage before."""
    for index, block in enumerate(stage.children()):
        dilation = after if index else before
        for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
