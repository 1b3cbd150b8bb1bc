"""Channel attention as others write it: each class in its author's style, under its own name."""

import math

import torch
import torch.nn.functional as F  # as all of these authors have it
from torch import nn


class SE_Block(nn.Module):  # noqa: N801
    """Pooled by a module, layers in a Sequential, expanded (after moskomule/senet.pytorch)."""

    def __init__(self, c, r=4):
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excitation = nn.Sequential(
            nn.Linear(c, c // r, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(c // r, c, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        bs, c, _, _ = x.shape
        y = self.squeeze(x).view(bs, c)
        y = self.excitation(y).view(bs, c, 1, 1)
        return x * y.expand_as(x)


class SEAttention(SE_Block):
    """xmu-xiaoma666/External-Attention-pytorch: ``size()``, and initialized by itself."""

    def __init__(self, channel=64, reduction=4):
        super().__init__(channel, reduction)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.1)

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.squeeze(x).view(b, c)
        y = self.excitation(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ChannelSELayer(nn.Module):
    """ai-med/squeeze_and_excitation: flattened, averaged, multiplied by ``torch.mul``."""

    def __init__(self, num_channels, reduction_ratio=2):
        super().__init__()
        reduced = num_channels // reduction_ratio
        self.fc1 = nn.Linear(num_channels, reduced, bias=True)
        self.fc2 = nn.Linear(reduced, num_channels, bias=True)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_tensor):
        batch_size, num_channels, _, _ = input_tensor.size()
        squeeze_tensor = input_tensor.view(batch_size, num_channels, -1).mean(dim=2)
        fc_out_1 = self.relu(self.fc1(squeeze_tensor))
        fc_out_2 = self.sigmoid(self.fc2(fc_out_1))
        a, b = squeeze_tensor.size()
        return torch.mul(input_tensor, fc_out_2.view(a, b, 1, 1))


class SE(nn.Module):
    """kuangliu/pytorch-cifar: functional throughout, convolutions of one position, swish."""

    def __init__(self, in_channels, se_channels):
        super().__init__()
        self.se1 = nn.Conv2d(in_channels, se_channels, kernel_size=1, bias=True)
        self.se2 = nn.Conv2d(se_channels, in_channels, kernel_size=1, bias=True)

    def forward(self, x):
        out = F.adaptive_avg_pool2d(x, (1, 1))
        out = self.se1(out)
        out = out * out.sigmoid()
        out = self.se2(out).sigmoid()
        return x * out


class SeModule(nn.Module):
    """xiaolai-sqlai/mobilenetv3: one Sequential, with norms and a hard sigmoid of its own."""

    def __init__(self, in_size, reduction=4):
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_size, in_size // reduction, kernel_size=1, bias=False),
            nn.BatchNorm2d(in_size // reduction),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_size // reduction, in_size, kernel_size=1, bias=False),
            nn.BatchNorm2d(in_size),
            hsigmoid(),
        )

    def forward(self, x):
        return x * self.se(x)


class hsigmoid(nn.Module):  # noqa: N801
    def forward(self, x):
        return F.relu6(x + 3, inplace=True) / 6


class eSEModule(nn.Module):  # noqa: N801
    """youngwanLEE/vovnet-detectron2: one layer, effective SE."""

    def __init__(self, channel):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channel, channel, kernel_size=1, padding=0)
        self.hsigmoid = hsigmoid()

    def forward(self, x):
        input = x
        x = self.avg_pool(x)
        x = self.fc(x)
        x = self.hsigmoid(x)
        return input * x


class SqueezeExcite(nn.Module):
    """huawei-noah/Efficient-AI-Backbones, GhostNet: a gate that is a function in an attribute."""

    def __init__(self, in_chs, se_ratio=0.25):
        super().__init__()
        self.gate_fn = lambda x: F.relu6(x + 3.0) / 6.0
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_reduce = nn.Conv2d(in_chs, int(in_chs * se_ratio), 1, bias=True)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(int(in_chs * se_ratio), in_chs, 1, bias=True)

    def forward(self, x):
        x_se = self.avg_pool(x)
        x_se = self.conv_reduce(x_se)
        x_se = self.act1(x_se)
        x_se = self.conv_expand(x_se)
        return x * self.gate_fn(x_se)


class CALayer(nn.Module):
    """yulunzhang/RCAN."""

    def __init__(self, channel, reduction=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channel, channel // reduction, 1, padding=0, bias=True),
            nn.ReLU(inplace=True),
            nn.Conv2d(channel // reduction, channel, 1, padding=0, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv_du(y)
        return x * y


class SimplifiedChannelAttention(nn.Sequential):
    """megvii-research/NAFNet: one layer without any gate; a Sequential with its own forward."""

    def __init__(self, dw_channel):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dw_channel, dw_channel, 1))

    def forward(self, inp):
        return inp * super().forward(inp)


class ECAAttention(nn.Module):
    """xmu-xiaoma666/External-Attention-pytorch: defined before what it follows, no width given."""

    def __init__(self, kernel_size=3):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=kernel_size, padding=(kernel_size - 1) // 2)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.gap(x)
        y = y.squeeze(-1).permute(0, 2, 1)
        y = self.conv(y)
        y = self.sigmoid(y)
        y = y.permute(0, 2, 1).unsqueeze(-1)
        return x * y.expand_as(x)


class ECA(nn.Module):
    """After BangguWu/ECANet, functional, the kernel computed from the width."""

    def __init__(self, channel, gamma=2, b=1):
        super().__init__()
        t = int(abs((math.log(channel, 2) + b) / gamma))
        k = t if t % 2 else t + 1
        self.conv = nn.Conv1d(1, 1, kernel_size=k, padding=k // 2, bias=False)

    def forward(self, x):
        y = torch.mean(x, dim=(2, 3))
        y = self.conv(y.unsqueeze(1))
        return x * torch.sigmoid(y).transpose(1, 2)[..., None]


class Squash(nn.Module):
    """Multiplied in place, twice the sigmoid, averages and maxima."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 5), nn.Linear(5, width)

    def forward(self, maps):
        pooled = maps.flatten(2).mean(-1) + maps.amax((-2, -1))
        scale = 2 * self.up(self.down(pooled).tanh()).sigmoid()
        maps = maps.clone()
        maps *= scale[:, :, None, None]
        return maps


class AvgPoolOfTheMapsSize(nn.Module):
    """Pooled by a kernel as large as the (square) map, as pytorch-cifar's SENet does."""

    def __init__(self, planes):
        super().__init__()
        self.fc1 = nn.Conv2d(planes, planes // 4, kernel_size=1)
        self.fc2 = nn.Conv2d(planes // 4, planes, kernel_size=1)

    def forward(self, out):
        w = F.avg_pool2d(out, out.size(2))
        w = F.relu(self.fc1(w))
        w = F.sigmoid(self.fc2(w))
        return out * w


class SELayer7(nn.Module):
    """Pooled by a kernel of one size, as early copies of MobileNet-V3 for 224 pixels have it."""

    def __init__(self, channel):
        super().__init__()
        self.avg_pool = nn.AvgPool2d(7)
        self.fc = nn.Sequential(nn.Conv2d(channel, 8, 1), nn.ReLU(), nn.Conv2d(8, channel, 1))

    def forward(self, x):
        return x * F.hardsigmoid(self.fc(self.avg_pool(x)))


class ByEinsum(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim, dim) / dim)

    def forward(self, x):
        s = torch.einsum("nchw,cd->nd", x, self.w) / x[0, 0].numel()
        return torch.einsum("nchw,nc->nchw", x, s.sigmoid())


class SRM(nn.Module):
    """hyunjaelee410/style-based-recalibration-module: mean and deviation, a layer per channel."""

    def __init__(self, channel):
        super().__init__()
        self.cfc = nn.Conv1d(channel, channel, kernel_size=2, bias=False, groups=channel)
        self.bn = nn.BatchNorm1d(channel)

    def forward(self, x):
        b, c, _, _ = x.size()
        mean = x.view(b, c, -1).mean(-1).unsqueeze(-1)
        std = x.view(b, c, -1).std(-1).unsqueeze(-1)
        u = torch.cat((mean, std), -1)
        z = self.bn(self.cfc(u))
        g = torch.sigmoid(z).view(b, c, 1, 1)
        return x * g.expand_as(x)


class GCT(nn.Module):
    """z-x-yang/GCT: the l2 norm, parameters without layers, one plus a hyperbolic tangent."""

    def __init__(self, num_channels, epsilon=1e-5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, num_channels, 1, 1))
        self.gamma = nn.Parameter(torch.randn(1, num_channels, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, num_channels, 1, 1))
        self.epsilon = epsilon

    def forward(self, x):
        embedding = (x.pow(2).sum((2, 3), keepdim=True) + self.epsilon).pow(0.5) * self.alpha
        norm = self.gamma / (embedding.pow(2).mean(dim=1, keepdim=True) + self.epsilon).pow(0.5)
        gate = 1.0 + torch.tanh(embedding * norm + self.beta)
        return x * gate


class GaussianTransformer(nn.Module):
    """Gated by a Gaussian of normalized means (Ruan et al., 2021): no parameters at all."""

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1e-5).sqrt()
        return x * torch.exp(-(y**2 / 2 * 2))


class MultiSpectralAttentionLayer(nn.Module):
    """cfzd/FcaNet: frequencies of the map, brought to one size, rather than its mean."""

    def __init__(self, channel, side=7):
        super().__init__()
        self.side = side
        self.register_buffer("weight", torch.randn(channel, side, side))
        self.fc = nn.Sequential(nn.Linear(channel, 4), nn.ReLU(True), nn.Linear(4, channel))

    def forward(self, x):
        n, c, _, _ = x.shape
        x_pooled = x
        if x.shape[-1] != self.side:
            x_pooled = F.adaptive_avg_pool2d(x, (self.side, self.side))
        y = torch.sum(x_pooled * self.weight, dim=[2, 3])
        y = self.fc(y).sigmoid().view(n, c, 1, 1)
        return x * y.expand_as(x)


class SEWithNorm(nn.Module):
    """Reads shapes, branches on them, and keeps what it computed for a plot."""

    def __init__(self, planes):
        super().__init__()
        self.squeeze_fc = nn.Conv2d(planes, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.excite_fc = nn.Conv2d(16, planes, 1)
        self.seen = []

    def forward(self, feature):
        assert feature.dim() == 4
        if feature.shape[-1] == 1 and feature.shape[-2] == 1:
            scale = feature
        else:
            scale = F.adaptive_max_pool2d(feature, 1)
        scale = self.excite_fc(F.silu(self.norm(self.squeeze_fc(scale))))
        self.seen.append(scale.detach())
        self.scale = scale
        return torch.sigmoid(scale).mul(feature) + feature
