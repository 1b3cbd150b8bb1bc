"""Attention over channels and positions, and over maps of one and three dimensions."""

import torch
import torch.nn.functional as F  # as all of these authors have it
from torch import nn

from tests.existing.channel import ChannelSELayer


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class ChannelGate(nn.Module):
    """Jongchan/attention-module, CBAM: averages and maxima through one MLP."""

    def __init__(self, gate_channels, reduction_ratio=4, pool_types=("avg", "max")):
        super().__init__()
        self.gate_channels = gate_channels
        self.mlp = nn.Sequential(
            Flatten(),
            nn.Linear(gate_channels, gate_channels // reduction_ratio),
            nn.ReLU(),
            nn.Linear(gate_channels // reduction_ratio, gate_channels),
        )
        self.pool_types = pool_types

    def forward(self, x):
        channel_att_sum = None
        size = (x.size(2), x.size(3))
        for pool_type in self.pool_types:
            pool = {"avg": F.avg_pool2d, "max": F.max_pool2d}[pool_type]
            channel_att_raw = self.mlp(pool(x, size, stride=size))
            if channel_att_sum is None:
                channel_att_sum = channel_att_raw
            else:
                channel_att_sum = channel_att_sum + channel_att_raw
        scale = F.sigmoid(channel_att_sum).unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * scale


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):
        compressed = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), 1)
        return x * F.sigmoid(self.bn(self.conv(compressed)))


class CBAM(nn.Module):
    """Jongchan/attention-module."""

    def __init__(self, gate_channels, no_spatial=False):
        super().__init__()
        self.channel_gate = ChannelGate(gate_channels)
        self.no_spatial = no_spatial
        if not no_spatial:
            self.spatial_gate = SpatialGate()

    def forward(self, x):
        x_out = self.channel_gate(x)
        if not self.no_spatial:
            x_out = self.spatial_gate(x_out)
        return x_out


class ChannelAttention(nn.Module):
    """luuuyi/CBAM.PyTorch: gives the scales alone."""

    def __init__(self, in_planes, ratio=4):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Sequential(
            nn.Conv2d(in_planes, in_planes // ratio, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(in_planes // ratio, in_planes, 1, bias=False),
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.fc(self.avg_pool(x)) + self.fc(self.max_pool(x)))


class SpatialAttention(nn.Module):
    def __init__(self, kernel_size=7):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out, _ = torch.max(x, dim=1, keepdim=True)
        return self.sigmoid(self.conv1(torch.cat([avg_out, max_out], dim=1)))


class Scales(ChannelAttention):
    """The same under a name that says nothing."""


class Places(SpatialAttention):
    """Likewise."""


class CBAMBlock(nn.Module):
    """xmu-xiaoma666/External-Attention-pytorch: multiplies by what two others give, adds itself."""

    def __init__(self, channel):
        super().__init__()
        self.ca = ChannelAttention(channel)
        self.sa = SpatialAttention()

    def forward(self, x):
        residual = x
        out = x * self.ca(x)
        out = out * self.sa(out)
        return out + residual


class BAM(nn.Module):
    """Jongchan/attention-module: 3x3 convolutions over space, within the gate."""

    def __init__(self, channel, r=4):
        super().__init__()
        hidden = channel // r
        self.fc = nn.Sequential(Flatten(), nn.Linear(channel, hidden), nn.Linear(hidden, channel))
        self.reduce = nn.Conv2d(channel, hidden, 1)
        self.dilated = nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4)
        self.final = nn.Conv2d(hidden, 1, 1)

    def forward(self, x):
        avg_pool = F.avg_pool2d(x, x.size(2), stride=x.size(2))
        channel_att = self.fc(avg_pool).unsqueeze(2).unsqueeze(3).expand_as(x)
        spatial_att = self.final(self.dilated(self.reduce(x))).expand_as(x)
        att = 1 + F.sigmoid(channel_att * spatial_att)
        return att * x


class SCSEModule(nn.Module):
    """qubvel/segmentation_models.pytorch."""

    def __init__(self, in_channels, reduction=4):
        super().__init__()
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, in_channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels // reduction, in_channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv2d(in_channels, 1, 1), nn.Sigmoid())

    def forward(self, x):
        return x * self.cSE(x) + x * self.sSE(x)


class SpatialSELayer(nn.Module):
    """ai-med/squeeze_and_excitation."""

    def __init__(self, num_channels):
        super().__init__()
        self.conv = nn.Conv2d(num_channels, 1, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_tensor):
        batch_size, _, a, b = input_tensor.size()
        squeeze_tensor = self.sigmoid(self.conv(input_tensor))
        return torch.mul(input_tensor, squeeze_tensor.view(batch_size, 1, a, b))


class ChannelSpatialSELayer(nn.Module):
    """ai-med/squeeze_and_excitation: the larger of two."""

    def __init__(self, num_channels):
        super().__init__()
        self.cSE = ChannelSELayer(num_channels)
        self.sSE = SpatialSELayer(num_channels)

    def forward(self, input_tensor):
        return torch.max(self.cSE(input_tensor), self.sSE(input_tensor))


class CoordAtt(nn.Module):
    """houqb/CoordAttention."""

    def __init__(self, inp, reduction=4):
        super().__init__()
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        mip = max(8, inp // reduction)
        self.conv1 = nn.Conv2d(inp, mip, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(mip)
        self.conv_h = nn.Conv2d(mip, inp, kernel_size=1)
        self.conv_w = nn.Conv2d(mip, inp, kernel_size=1)

    def forward(self, x):
        identity = x
        _, _, h, w = x.size()
        x_h, x_w = self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)
        y = self.bn1(self.conv1(torch.cat([x_h, x_w], dim=2)))
        y = y * F.relu6(y + 3) / 6
        x_h, x_w = torch.split(y, [h, w], dim=2)
        a_h = self.conv_h(x_h).sigmoid()
        a_w = self.conv_w(x_w.permute(0, 1, 3, 2)).sigmoid()
        return identity * a_w * a_h


class simam_module(nn.Module):  # noqa: N801
    """ZjjConan/SimAM: no parameters, a scale for each position."""

    def __init__(self, e_lambda=1e-4):
        super().__init__()
        self.activaton = nn.Sigmoid()
        self.e_lambda = e_lambda

    def forward(self, x):
        _, _, h, w = x.size()
        n = w * h - 1
        square = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        y = square / (4 * (square.sum(dim=[2, 3], keepdim=True) / n + self.e_lambda)) + 0.5
        return x * self.activaton(y)


class sa_layer(nn.Module):  # noqa: N801
    """wofmanaf/SA-Net: half of the channels by what they average to, half by position; shuffled."""

    def __init__(self, channel, groups=4):
        super().__init__()
        self.groups = groups
        part = channel // (2 * groups)
        self.cweight = nn.Parameter(torch.randn(1, part, 1, 1))
        self.cbias = nn.Parameter(torch.ones(1, part, 1, 1))
        self.sweight = nn.Parameter(torch.randn(1, part, 1, 1))
        self.sbias = nn.Parameter(torch.ones(1, part, 1, 1))
        self.gn = nn.GroupNorm(part, part)

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b * self.groups, -1, h, w)
        x_0, x_1 = x.chunk(2, dim=1)
        xn = self.cweight * x_0.mean((2, 3), keepdim=True) + self.cbias
        xn = x_0 * torch.sigmoid(xn)
        xs = self.sweight * self.gn(x_1) + self.sbias
        xs = x_1 * torch.sigmoid(xs)
        out = torch.cat([xn, xs], dim=1).reshape(b, 2, c // 2, h, w)
        return out.permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


class GEThetaPlus(nn.Module):
    """Gather-Excite: gathered by strided convolutions of single channels, brought back to size."""

    def __init__(self, planes):
        super().__init__()
        self.gather = nn.Sequential(
            nn.Conv2d(planes, planes, 3, stride=2, padding=1, groups=planes), nn.BatchNorm2d(planes)
        )

    def forward(self, x):
        return x * F.interpolate(self.gather(x), x.shape[-2:]).sigmoid()


class GEThetaMinus(nn.Module):
    """Gather-Excite without parameters."""

    def forward(self, x):
        return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))


class SELayer3D(nn.Module):
    """Of three dimensions, after ai-med/squeeze_and_excitation's squeeze_and_excitation_3D.py."""

    def __init__(self, num_channels):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool3d(1)
        self.fc1 = nn.Linear(num_channels, num_channels // 2)
        self.fc2 = nn.Linear(num_channels // 2, num_channels)

    def forward(self, input_tensor):
        batch_size, num_channels, _, _, _ = input_tensor.size()
        squeeze = self.avg_pool(input_tensor).view(batch_size, num_channels)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(squeeze))))
        return torch.mul(input_tensor, scale.view(batch_size, num_channels, 1, 1, 1))


class SE1d(nn.Module):
    """Of one dimension, as speakers are told apart (TaoRuijie/ECAPA-TDNN's SEModule)."""

    def __init__(self, channels, bottleneck=8):
        super().__init__()
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool1d(1),
            nn.Conv1d(channels, bottleneck, kernel_size=1, padding=0),
            nn.ReLU(),
            nn.Conv1d(bottleneck, channels, kernel_size=1, padding=0),
            nn.Sigmoid(),
        )

    def forward(self, input):
        x = self.se(input)
        return input * x


class ECGSqueeze(nn.Module):
    """Of one dimension, by a mean and linear layers."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, signal):
        s = torch.sigmoid(self.b(F.relu(self.a(signal.mean(-1)))))
        return signal * s.unsqueeze(-1)
