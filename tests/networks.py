"""The one table of small networks that the tests run over.

Every network has convolutions with at least ``MIN_CHANNELS`` output channels, and some with fewer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn
from torchvision.ops.misc import SqueezeExcitation as TorchvisionSqueezeExcitation

MIN_CHANNELS = 16


class Shared(nn.Module):
    """One convolution under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(self.stem(x)).relu())


class Residual(nn.Module):
    """Batch norm, a shortcut, containers of modules, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.branches = nn.ModuleDict({"a": nn.Conv2d(8, 16, 3, padding=1)})
        self.shortcut = nn.ModuleList([nn.Conv2d(8, 16, 1)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.branches["a"](x) + self.shortcut[0](x)
        return self.head(x.mean((2, 3)))


def _own_attention():
    """A network with its own Squeeze-and-Excitation, whose convolutions are not sites."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), TorchvisionSqueezeExcitation(16, 16), nn.Conv2d(16, 8, 1)
    )


def _inverted_residual():
    """Depthwise and grouped convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 32, 3, groups=32, padding=1),
        nn.Conv2d(32, 16, 1, groups=2),
        nn.Conv2d(16, 4, 1),
    )


@dataclass(frozen=True)
class Network:
    """A small network: how to build it, its input, and its sites at MIN_CHANNELS."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: tuple[str, ...]

    def batch(self, **options) -> torch.Tensor:
        return torch.randn(self.shape, **options)


NETWORKS = {
    "root": Network(lambda: nn.Conv2d(3, 16, 3), (2, 3, 8, 8), ("",)),
    "signal": Network(
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 16, 3)),
        (2, 3, 16),
        ("2",),
    ),
    "volume": Network(
        lambda: nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 16, 3)),
        (2, 1, 6, 7, 8),
        ("2",),
    ),
    "shared": Network(Shared, (2, 3, 8, 8), ("stem", "first")),
    "residual": Network(Residual, (2, 3, 8, 8), ("branches.a", "shortcut.0")),
    "own_attention": Network(_own_attention, (2, 3, 8, 8), ("0",)),
    "inverted_residual": Network(_inverted_residual, (2, 3, 8, 8), ("0", "3", "4")),
    "resnet": Network(
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, width_per_group=64
        ),
        (2, 3, 32, 32),
        (
            "conv1",
            "layer1.0.conv1",
            "layer1.0.conv2",
            "layer2.0.conv1",
            "layer2.0.conv2",
            "layer2.0.downsample.0",
            "layer3.0.conv1",
            "layer3.0.conv2",
            "layer3.0.downsample.0",
            "layer4.0.conv1",
            "layer4.0.conv2",
            "layer4.0.downsample.0",
        ),
    ),
}
