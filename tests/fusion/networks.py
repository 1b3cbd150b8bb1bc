"""Networks whose attended modules are fused with batch norms, and the two that tests compare."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from composer_attn.functional import fuse_attention
from tests.networks import NETWORKS
from tests.surgeries import SURGERIES


class Block(nn.Module):
    """A small bottleneck: one ReLU called three times, and a shortcut with layers."""

    def __init__(self, channels_in: int = 8, channels: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels, momentum=None)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1), nn.BatchNorm2d(channels, affine=False)
        )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Net(nn.Module):
    """A stem called by the network's own forward, blocks, a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.layers = nn.Sequential(Block(8, 16), Block(16, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        return self.head(x.mean((2, 3)))


def sequence(dimensions: int = 2) -> nn.Sequential:
    conv, norm = ((getattr(nn, f"{kind}{dimensions}d")) for kind in ("Conv", "BatchNorm"))
    first = [conv(3, 16, 3), norm(16, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*first, conv(16, 16, 3), nn.Identity(), norm(16))


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (network.build, network.shape) for name, network in NETWORKS.items()},
    # More than two values per channel in the last norms, which would otherwise magnify rounding.
    "resnet": (NETWORKS["resnet"].build, (4, 3, 64, 64)),
    "net": (Net, (3, 3, 9, 7)),
    "sequence1d": (lambda: sequence(1), (3, 3, 11)),
    "sequence2d": (lambda: sequence(2), (3, 3, 9, 7)),
    "sequence3d": (lambda: sequence(3), (2, 3, 7, 5, 6)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=7), (4, 3, 64, 64)),
    "resnet50": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7
        ),
        (4, 3, 64, 64),
    ),
}

each_shape = pytest.mark.parametrize(("build", "shape"), SHAPES.values(), ids=SHAPES)


def pair(
    build: Callable[[], nn.Module], surgery: str = "squeeze_excite", dtype=torch.float64, **options
) -> tuple[nn.Module, nn.Module]:
    """Build an attended network, and a fused copy of it."""
    torch.manual_seed(0)
    plain = build().to(dtype)
    SURGERIES[surgery].apply(plain, **options)
    fused = copy.deepcopy(plain)
    fuse_attention(fused, backend="reference")
    return plain, fused


def fused_net(**options) -> nn.Module:
    """Build a fused :class:`Net`; six sites, all fused with norms."""
    return pair(Net, min_channels=8, **options)[1]
