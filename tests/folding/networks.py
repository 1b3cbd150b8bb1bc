"""Small networks to fold, in double precision, with norms that reveal mistakes.

Of each norm some weights are negative, one is zero, and one is next to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, ResNet

CHANNELS = 12


def at_random(model: nn.Module) -> nn.Module:
    """Give every norm random statistics and weights; in evaluation mode and double precision."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight, 0.3)
                nn.init.normal_(module.bias)
                with torch.no_grad():
                    module.weight[1:2], module.weight[2:3] = 0, 1e-9
    return model.double().eval()


def _stack(dimensions: int, bias: bool, affine: bool, activation: type[nn.Module]) -> nn.Module:
    """A convolution, a depthwise, a grouped and a last one, each with its norm."""
    conv, norm = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"BatchNorm{dimensions}d")
    layers: list[nn.Module] = []
    for options in (
        {"in_channels": 3, "kernel_size": 3, "padding": 1},
        {"in_channels": CHANNELS, "kernel_size": 3, "groups": CHANNELS},
        {"in_channels": CHANNELS, "kernel_size": 1, "groups": 3},
        {"in_channels": CHANNELS, "kernel_size": 2, "stride": 2, "padding_mode": "circular"},
        {"in_channels": CHANNELS, "kernel_size": 1, "stride": 2},
    ):
        layers += [conv(out_channels=CHANNELS, bias=bias, **options)]
        layers += [norm(CHANNELS, affine=affine), activation()]
    return nn.Sequential(*layers)


class Inverted(nn.Module):
    """An inverted residual block whose last norm is followed by nothing but the addition."""

    def __init__(self):
        super().__init__()
        wide = 2 * CHANNELS
        self.expand = nn.Sequential(nn.Conv2d(CHANNELS, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.act = nn.SiLU()
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(wide)
        self.project = nn.Sequential(nn.Conv2d(wide, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.depthwise_norm(self.depthwise(self.act(self.expand(x)))))
        return x + self.project(y)


def _inverted() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
    return nn.Sequential(stem, Inverted(), Inverted())


def _resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, width_per_group=64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "signal": (lambda: _stack(1, False, True, nn.ReLU), (2, 3, 32)),
    "bias": (lambda: _stack(2, True, True, nn.SiLU), (2, 3, 12, 13)),
    "bare": (lambda: _stack(2, False, False, nn.Hardswish), (2, 3, 12, 13)),
    "bias_alone": (lambda: _stack(2, True, False, nn.GELU), (2, 3, 12, 13)),
    "volume": (lambda: _stack(3, True, True, nn.LeakyReLU), (2, 3, 8, 9, 10)),
    "inverted": (_inverted, (2, 3, 9, 9)),
    "resnet": (_resnet, (2, 3, 32, 32)),
}
BLOCKS = ("inverted", "resnet")


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network and its input."""
    build, shape = NETWORKS[name]
    return at_random(build()), torch.randn(shape, dtype=torch.float64)
