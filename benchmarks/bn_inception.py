"""BN-Inception, which neither torchvision nor timm has, for the SENet paper's SE-BN-Inception.

The network of `Ioffe and Szegedy, 2015 <https://arxiv.org/abs/1502.03167>`_, figure 5, with the
widths of the SENet authors' ``SE-BN-Inception.prototxt``.
"""

import torch
from torch import Tensor, nn

# For each module, the widths of: the 1x1 branch; 1x1, then 3x3; 1x1, then two 3x3; the 1x1 after
# pooling (average pooling; max pooling in the last module). Without the 1x1 branch, stride is 2.
MODULES = (
    (64, (64, 64), (64, 96), 32),
    (64, (64, 96), (64, 96), 64),
    (0, (128, 160), (64, 96), 0),
    (224, (64, 96), (96, 128), 128),
    (192, (96, 128), (96, 128), 128),
    (160, (128, 160), (128, 160), 128),
    (96, (128, 192), (160, 192), 128),
    (0, (128, 192), (192, 256), 0),
    (352, (192, 320), (160, 224), 128),
    (352, (192, 320), (192, 224), 128),
)


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Inception(nn.Module):
    """Parallel branches whose outputs are concatenated along the channels."""

    def __init__(self, inputs, single, double, triple, projected, average=True):
        super().__init__()
        stride = 1 if single else 2
        average = average and stride == 1
        pool = (nn.AvgPool2d if average else nn.MaxPool2d)(3, stride, padding=1)
        self.branches = nn.ModuleList([
            nn.Sequential(_conv(inputs, double[0]), _conv(*double, 3, stride)),
            nn.Sequential(
                _conv(inputs, triple[0]), _conv(*triple, 3), _conv(triple[1], triple[1], 3, stride)
            ),
            nn.Sequential(pool, _conv(inputs, projected)) if projected else pool,
        ])  # fmt: skip
        if single:
            self.branches.insert(0, _conv(inputs, single))
        self.channels = single + double[1] + triple[1] + (projected or inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, channels, H, W)``, or half of H and W at stride 2."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class BNInception(nn.Module):
    """The network, for 224x224 images and 1000 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, padding=1),
            _conv(64, 64), _conv(64, 192, 3), nn.MaxPool2d(3, 2, padding=1),
        )  # fmt: skip
        modules = [Inception(192, *MODULES[0])]
        for number, widths in enumerate(MODULES[1:], 1):
            average = number < len(MODULES) - 1
            modules.append(Inception(modules[-1].channels, *widths, average=average))
        self.inceptions = nn.Sequential(*modules)
        self.fc = nn.Linear(modules[-1].channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, 224, 224)`` to logits ``(N, 1000)``."""
        return self.fc(self.inceptions(self.stem(x)).mean((2, 3)))
