"""Attention modules from other projects, by name: how to build each, and its input shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tests.existing import channel, mixed

CHANNELS = 32
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Written:
    """A module from another project.

    Attributes:
        build: builds it for 32 channels.
        dimensions: of the maps that it takes.
        side: of these maps.
    """

    build: Callable[[], nn.Module]
    dimensions: int = 2
    side: int = 8


def _of(cls: type[nn.Module], *arguments: int, **options: int) -> Written:
    return Written(lambda: cls(*arguments), **options)


WRITTEN = {
    "SE_Block": _of(channel.SE_Block, CHANNELS),
    "SEAttention": _of(channel.SEAttention, CHANNELS),
    "ChannelSELayer": _of(channel.ChannelSELayer, CHANNELS),
    "SE": _of(channel.SE, CHANNELS, 8),
    "SeModule": _of(channel.SeModule, CHANNELS),
    "eSEModule": _of(channel.eSEModule, CHANNELS),
    "SqueezeExcite": _of(channel.SqueezeExcite, CHANNELS),
    "CALayer": _of(channel.CALayer, CHANNELS),
    "SimplifiedChannelAttention": _of(channel.SimplifiedChannelAttention, CHANNELS),
    "ECAAttention": _of(channel.ECAAttention),
    "ECA": _of(channel.ECA, CHANNELS),
    "Squash": _of(channel.Squash, CHANNELS),
    "AvgPoolOfTheMapsSize": _of(channel.AvgPoolOfTheMapsSize, CHANNELS),
    "SELayer7": _of(channel.SELayer7, CHANNELS, side=7),
    "ByEinsum": _of(channel.ByEinsum, CHANNELS),
    "SRM": _of(channel.SRM, CHANNELS),
    "GCT": _of(channel.GCT, CHANNELS),
    "GaussianTransformer": _of(channel.GaussianTransformer),
    "MultiSpectralAttentionLayer": _of(channel.MultiSpectralAttentionLayer, CHANNELS),
    "SEWithNorm": _of(channel.SEWithNorm, CHANNELS),
    "ChannelGate": _of(mixed.ChannelGate, CHANNELS),
    "SpatialGate": _of(mixed.SpatialGate),
    "CBAM": _of(mixed.CBAM, CHANNELS),
    "CBAM without space": Written(lambda: mixed.CBAM(CHANNELS, no_spatial=True)),
    "CBAMBlock": _of(mixed.CBAMBlock, CHANNELS),
    "BAM": _of(mixed.BAM, CHANNELS),
    "SCSEModule": _of(mixed.SCSEModule, CHANNELS),
    "SpatialSELayer": _of(mixed.SpatialSELayer, CHANNELS),
    "ChannelSpatialSELayer": _of(mixed.ChannelSpatialSELayer, CHANNELS),
    "CoordAtt": _of(mixed.CoordAtt, CHANNELS),
    "simam_module": _of(mixed.simam_module),
    "sa_layer": _of(mixed.sa_layer, CHANNELS),
    "GEThetaPlus": _of(mixed.GEThetaPlus, CHANNELS),
    "GEThetaMinus": _of(mixed.GEThetaMinus),
    "SELayer3D": _of(mixed.SELayer3D, CHANNELS, dimensions=3),
    "SE1d": _of(mixed.SE1d, CHANNELS, dimensions=1),
    "ECGSqueeze": _of(mixed.ECGSqueeze, CHANNELS, dimensions=1),
}
each_written = pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)


class Network(nn.Module):
    """A convolution, an attention, which is defined before it, and a convolution."""

    def __init__(self, attention: nn.Module, dimensions: int = 2):
        super().__init__()
        convolution = CONVOLUTIONS[dimensions]
        self.own = attention
        self.conv = convolution(3, CHANNELS, 1)
        self.norm = NORMS[dimensions](CHANNELS)
        self.last = convolution(CHANNELS, 8, 1)
        randomize(self)
        self.eval()

    def before(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.own(self.before(x)))


def network(written: Written) -> tuple[Network, Tensor]:
    """Build the network around an attention, and an input for it."""
    x = torch.randn(2, 3, *[written.side] * written.dimensions)
    return Network(written.build(), written.dimensions), x


def randomize(module: nn.Module) -> None:
    """Give norms statistics and weights as after training: fresh ones hide bugs."""
    for part in module.modules():
        if isinstance(part, (*NORMS.values(), nn.GroupNorm)):
            nn.init.normal_(part.weight, 1, 0.2)
            nn.init.normal_(part.bias, 0, 0.2)
            if getattr(part, "running_mean", None) is not None:
                nn.init.normal_(part.running_mean, 0, 0.3)
                nn.init.uniform_(part.running_var, 0.5, 2)
