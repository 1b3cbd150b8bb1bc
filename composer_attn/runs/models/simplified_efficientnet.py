"""The simplified EfficientNet for 100 classes and 56x56 images, small enough for studies."""

from torch import Tensor, nn

# For each inverted residual block: input channels, output channels, stride of the 3x3 convolution.
BLOCKS = (
    (16, 16, 1), (16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 40, 1),
    (40, 80, 2), (80, 80, 1), (80, 80, 1), (80, 80, 1),
    (80, 160, 2), (160, 160, 1), (160, 160, 1), (160, 160, 1), (160, 160, 1), (160, 320, 1),
)  # fmt: skip
_EXPANSION = 4


class InvertedResidual(nn.Module):
    """Expand by 1x1, convolve by 3x3, project by 1x1, with a shortcut if the shapes match.

    Args:
        channels_in: number of input channels.
        channels_out: number of output channels.
        stride: stride of the 3x3 convolution.
        depthwise: whether the 3x3 convolution is depthwise.
        experts: number of kernels that conditional convolutions mix for each sample; 0 for plain
            convolutions.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, depthwise: bool, experts: int
    ):
        super().__init__()
        width = _EXPANSION * channels_in
        groups = width if depthwise else 1
        self.routing = nn.Linear(channels_in, experts) if experts else None
        self.expand = _conv(channels_in, width, 1, experts=experts)
        self.expand_norm = nn.BatchNorm2d(width)
        self.spatial = _conv(width, width, 3, stride, groups, experts)
        self.spatial_norm = nn.BatchNorm2d(width)
        self.project = _conv(width, channels_out, 1, experts=experts)
        self.project_norm = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels_in, H, W)`` to ``(N, channels_out, H / stride, W / stride)``."""
        # Conditional convolutions (CondConv, Yang et al., 2019, eq. 1): each sample mixes the
        # experts by the sigmoid of a linear layer of the block's pooled input.
        mix = () if self.routing is None else (self.routing(x.mean((2, 3))).sigmoid(),)
        y = self.relu(self.expand_norm(self.expand(x, *mix)))
        y = self.relu(self.spatial_norm(self.spatial(y, *mix)))
        y = self.project_norm(self.project(y, *mix))
        return x + y if self.has_shortcut else y


class SimplifiedEfficientNet(nn.Module):
    """An EfficientNet of 16 inverted residual blocks, without attention.

    A 3x3 stem, :data:`BLOCKS`, a 1x1 convolution to 1,280 channels, average pool, linear layer;
    batch norm and ReLU after each convolution except the last of each block. For 100 classes at
    56x56 the published number of multiply-accumulates is 2,640,261,120. It is for dense 3x3
    convolutions, and counts the linear layer at each of the 49 positions before pooling; with that
    counted once, as computed, it is 2,634,117,120, and with depthwise 3x3 convolutions 193,898,304.

    Args:
        num_classes: width of the last layer.
        depthwise: whether the blocks' 3x3 convolutions are depthwise, as in EfficientNet, rather
            than dense, as in the published table.
        experts: number of kernels that the blocks' convolutions mix for each sample (CondConv,
            `Yang et al., 2019 <https://arxiv.org/abs/1904.04971>`_); 0 for plain convolutions.
            Requires timm.

    Example:
        >>> import torch
        >>> from composer_attn.runs.models.simplified_efficientnet import SimplifiedEfficientNet
        >>> SimplifiedEfficientNet(num_classes=100)(torch.randn(1, 3, 56, 56)).shape
        torch.Size([1, 100])
    """

    def __init__(self, num_classes: int = 100, depthwise: bool = True, experts: int = 0):
        super().__init__()
        self.stem = nn.Conv2d(3, BLOCKS[0][0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(BLOCKS[0][0])
        self.blocks = nn.Sequential(
            *(InvertedResidual(*block, depthwise, experts) for block in BLOCKS)
        )
        self.head = nn.Conv2d(BLOCKS[-1][1], 1280, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(1280)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        x = self.relu(self.stem_norm(self.stem(x)))
        x = self.relu(self.head_norm(self.head(self.blocks(x))))
        return self.classifier(x.mean((2, 3)))


def _conv(
    channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1, experts=0
) -> nn.Module:
    if not experts:
        return nn.Conv2d(
            channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False
        )
    try:
        from timm.layers import CondConv2d
    except ImportError as error:
        raise ImportError(
            "conditional convolutions come with timm: pip install 'composer-attn[timm]'"
        ) from error
    return CondConv2d(
        channels_in,
        channels_out,
        size,
        stride,
        size // 2,
        groups=groups,
        num_experts=experts,
    )
