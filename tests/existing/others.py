"""Modules that are not attention, though they are called one, contain one, or look like one."""

import torch
import torch.nn.functional as F  # as all of these authors have it
from torch import nn

from tests.existing.channel import SE_Block


class SEBlock(nn.Module):
    """A residual block named after the attention that its author meant to add."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SEModule(SEBlock):
    """Likewise, of 1x1 convolutions."""

    def __init__(self, channels):
        super().__init__(channels)
        self.conv1 = nn.Conv2d(channels, 8, 1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, channels, 1)


class ChannelAttention(SEBlock):
    """Likewise, under a name that timm's attention of more than rescaling has."""


class SELayer(SEBlock):
    """Likewise, with SE inside: a child of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.excite = SE_Block(channels)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.excite(y) + x)


class SqueezeExcite(SEBlock):
    """Likewise, with SE in its own forward (kuangliu/pytorch-cifar's SENet)."""

    def __init__(self, channels):
        super().__init__(channels)
        self.fc1 = nn.Conv2d(channels, channels // 4, kernel_size=1)
        self.fc2 = nn.Conv2d(channels // 4, channels, kernel_size=1)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        w = F.avg_pool2d(out, out.size(2))
        w = F.relu(self.fc1(w))
        w = F.sigmoid(self.fc2(w))
        out = out * w
        out += x
        return F.relu(out)


class SEUntraced(SEBlock):
    """Likewise, and it looks at values."""

    def forward(self, x):
        return super().forward(x) if x.mean() > -1e9 else x


class RCAB(nn.Module):
    """yulunzhang/RCAN: a residual block of channel attention; only what is in it, is one."""

    def __init__(self, n_feat):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_feat, n_feat, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(n_feat, n_feat, 3, padding=1),
            SE_Block(n_feat),
        )

    def forward(self, x):
        res = self.body(x)
        res += x
        return res


class AttentionRefinementModule(nn.Module):
    """CoinCheung/BiSeNet: a convolution, then attention to what it gives."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_atten = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels)

    def forward(self, x):
        feat = self.conv(x)
        atten = torch.mean(feat, dim=(2, 3), keepdim=True)
        atten = self.bn_atten(self.conv_atten(atten)).sigmoid()
        return torch.mul(feat, atten)


class SEReLU(nn.Module):
    """More than a rescaling: without it, the activation would be lost."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.relu(x * F.adaptive_avg_pool2d(self.fc(x), 1).sigmoid())


class ResNetCBAM(nn.Module):
    """luuuyi/CBAM.PyTorch: multiplies in the block what two children give."""

    def __init__(self, channels, ca, sa):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.ca = ca
        self.sa = sa

    def forward(self, x):
        out = self.bn1(self.conv1(x))
        out = self.ca(out) * out
        out = self.sa(out) * out
        out += x
        return F.relu(out)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(dim, 1, 1))

    def forward(self, x):
        return x * self.gamma


class GRN(nn.Module):
    """facebookresearch/ConvNeXt-V2: a norm."""

    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, dim, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, dim, 1, 1))

    def forward(self, x):
        gx = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        nx = gx / (gx.mean(dim=1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x


class RMSNorm2d(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, dim, 1, 1))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean((1, 2, 3), keepdim=True) + 1e-6) * self.weight


class L2Norm(nn.Module):
    def forward(self, x):
        return x * (1 / x.norm(dim=(2, 3), keepdim=True).clamp_min(1e-6))


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, device=x.device) > 0.1)


class GLU(nn.Module):
    """A gate at each position, which nothing was pooled for."""

    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x))


class ASPPPooling(nn.Module):
    """A context that is not multiplied."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.interpolate(F.relu(self.conv(F.adaptive_avg_pool2d(x, 1))), x.shape[-2:])


class Head(nn.Module):
    """Pooled, through layers and a sigmoid: as many predictions as there are channels."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))).sigmoid()


class Mask(nn.Module):
    """One channel of probabilities, of convolutions over the map itself."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x).sigmoid()


class InPlaceReLU(nn.Module):
    def forward(self, x):
        return F.relu_(x)
