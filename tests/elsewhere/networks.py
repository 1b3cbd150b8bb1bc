"""Small networks for other libraries' code, with random statistics and weights in their norms.

A fresh norm (weight 1, bias 0, mean 0, variance 1) folds into nothing, and hides every fault.
"""

import torch
from torch import Tensor, nn

from composer_attn.functional import apply_eca, apply_squeeze_excite

APPLYING = {
    "eca": lambda model, **options: apply_eca(model, min_channels=8, **options),
    "squeeze_excite": lambda model, **options: apply_squeeze_excite(
        model, 4, min_channels=8, **options
    ),
}


class Block(nn.Module):
    """A residual block whose shortcut is a convolution and a norm."""

    def __init__(self, channels: int, bias: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(12)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(channels, 12, 1, bias=bias), nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class Net(nn.Module):
    def __init__(self, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.block = Block(8, bias)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.relu(self.bn(self.conv(x)))).mean((2, 3)))


def at_random(model: nn.Module) -> nn.Module:
    """Give every norm random statistics and weights, some of them negative; in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight, 0.5)
                nn.init.normal_(module.bias)
    return model.eval()


def images(size: int = 9) -> Tensor:
    return torch.randn(2, 3, size, size)
