"""Attention of packages that are not installed here, in faithful copies of their code.

MONAI (Project-MONAI/MONAI, Apache 2.0, ``monai/networks/blocks/squeeze_and_excitation.py``) and
EfficientNet-PyTorch (lukemelas/EfficientNet-PyTorch, Apache 2.0,
``efficientnet_pytorch/model.py``).
"""

import math

import pytest
import torch
import torch.nn.functional as F  # as these authors have it
from torch import nn

from composer_attn.errors import PlacementError
from composer_attn.functional import apply_eca, attended_modules, plan_eca, remove_attention
from tests.existing.table import CHANNELS, CONVOLUTIONS, NORMS, Network, randomize
from tests.surgeries import each_surgery, names

POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
each_dimension = pytest.mark.parametrize("dimensions", [1, 2, 3])


class ChannelSELayer(nn.Module):
    """MONAI's, with factories looked up in tables."""

    def __init__(self, spatial_dims, in_channels, r=2, add_residual=False):
        super().__init__()
        self.add_residual = add_residual
        self.avg_pool = POOLS[spatial_dims](1)
        channels = int(in_channels // r)
        self.fc = nn.Sequential(
            nn.Linear(in_channels, channels, bias=True),
            nn.ReLU(inplace=True),
            nn.Linear(channels, in_channels, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c = x.shape[:2]
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view([b, c] + [1] * (x.ndim - 2))
        result = x * y
        if self.add_residual:
            result += x
        return result


class ResidualSELayer(ChannelSELayer):
    def __init__(self, spatial_dims, in_channels, r=2):
        super().__init__(spatial_dims, in_channels, r, add_residual=True)


class SEBlock(nn.Module):
    """MONAI's: three convolutions with SE, added to the input: no attention, but a block."""

    def __init__(self, spatial_dims, in_channels, n_chns, project=None):
        super().__init__()
        convolution, norm = CONVOLUTIONS[spatial_dims], NORMS[spatial_dims]

        def block(inputs, outputs, kernel, act=True):
            layers = [convolution(inputs, outputs, kernel, padding=kernel // 2), norm(outputs)]
            return nn.Sequential(*layers, *([nn.ReLU(True)] if act else []))

        self.conv1 = block(in_channels, n_chns, 1)
        self.conv2 = block(n_chns, n_chns, 3)
        self.conv3 = block(n_chns, n_chns, 1, act=False)
        self.se_layer = ChannelSELayer(spatial_dims, n_chns, r=4)
        self.project = project
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        residual = x if self.project is None else self.project(x)
        x = self.conv1(x)
        x = self.conv2(x)
        x = self.conv3(x)
        x = self.se_layer(x)
        x += residual
        return self.act(x)


class SEBottleneck(SEBlock):
    pass


class MemoryEfficientSwish(nn.Module):
    """EfficientNet-PyTorch's."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, i):
            ctx.save_for_backward(i)
            return i * torch.sigmoid(i)

        @staticmethod
        def backward(ctx, grad_output):
            (i,) = ctx.saved_tensors
            sigmoid_i = torch.sigmoid(i)
            return grad_output * (sigmoid_i * (1 + i * (1 - sigmoid_i)))

    def forward(self, x):
        return self.Function.apply(x)


class Conv2dDynamicSamePadding(nn.Conv2d):
    """EfficientNet-PyTorch's: pads by the size of what it is given."""

    def forward(self, x):
        ih, iw = x.size()[-2:]
        kh, kw = self.weight.size()[-2:]
        sh, sw = self.stride
        oh, ow = math.ceil(ih / sh), math.ceil(iw / sw)
        pad_h = max((oh - 1) * sh + (kh - 1) * self.dilation[0] + 1 - ih, 0)
        pad_w = max((ow - 1) * sw + (kw - 1) * self.dilation[1] + 1 - iw, 0)
        if pad_h > 0 or pad_w > 0:
            halves = [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2]
            x = F.pad(x, halves)
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class MBConvBlock(nn.Module):
    """EfficientNet-PyTorch's: SE in the forward of the block."""

    def __init__(self, inp, oup, expand_ratio=4, kernel=3, se_ratio=0.25, id_skip=True):
        super().__init__()
        self.has_se, self.id_skip, self.expand_ratio = se_ratio is not None, id_skip, expand_ratio
        self.input_filters, self.output_filters = inp, oup
        hidden = inp * expand_ratio
        if expand_ratio != 1:
            self._expand_conv = Conv2dDynamicSamePadding(inp, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden)
        self._depthwise_conv = Conv2dDynamicSamePadding(
            hidden, hidden, kernel, groups=hidden, bias=False
        )
        self._bn1 = nn.BatchNorm2d(hidden)
        if self.has_se:
            squeezed = max(1, int(inp * se_ratio))
            self._se_reduce = Conv2dDynamicSamePadding(hidden, squeezed, kernel_size=1)
            self._se_expand = Conv2dDynamicSamePadding(squeezed, hidden, kernel_size=1)
        self._project_conv = Conv2dDynamicSamePadding(hidden, oup, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(oup)
        self._swish = MemoryEfficientSwish()

    def forward(self, inputs, drop_connect_rate=None):
        x = inputs
        if self.expand_ratio != 1:
            x = self._expand_conv(inputs)
            x = self._bn0(x)
            x = self._swish(x)
        x = self._depthwise_conv(x)
        x = self._bn1(x)
        x = self._swish(x)
        if self.has_se:
            x_squeezed = F.adaptive_avg_pool2d(x, 1)
            x_squeezed = self._se_reduce(x_squeezed)
            x_squeezed = self._swish(x_squeezed)
            x_squeezed = self._se_expand(x_squeezed)
            x = torch.sigmoid(x_squeezed) * x
        x = self._project_conv(x)
        x = self._bn2(x)
        if self.id_skip and self.input_filters == self.output_filters:
            if drop_connect_rate and self.training:
                x = F.dropout(x, drop_connect_rate)
            x = x + inputs
        return x


@each_surgery
@each_dimension
@pytest.mark.parametrize("cls", [ChannelSELayer, ResidualSELayer])
def test_layers_of_monai_are_replaced(surgery, dimensions, cls):
    model = Network(cls(dimensions, CHANNELS), dimensions)
    x = torch.randn(2, 3, *[6] * dimensions)
    outputs = model(x)
    plan = surgery.apply(model, replace=True)
    assert [(s.name, s.kind, s.channels) for s in plan.chosen] == [("own", cls.__name__, CHANNELS)]
    expected = model.last(attended_modules(model)["own"](model.before(x)))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert not torch.allclose(model(x), outputs)


@each_dimension
@pytest.mark.parametrize("cls", [SEBlock, SEBottleneck])
def test_blocks_of_monai_keep_their_convolutions(dimensions, cls):
    model = Network(cls(dimensions, CHANNELS, CHANNELS), dimensions)
    x = torch.randn(2, 3, *[6] * dimensions)
    own = model.own.se_layer
    assert names(plan_eca(model, min_channels=1).chosen) == (
        "own.conv1.0", "own.conv2.0", "own.conv3.0", "conv", "last",
    )  # fmt: skip
    assert names(plan_eca(model, replace=True).chosen) == ("own.se_layer",)
    assert remove_attention(model) == {"own.se_layer": own}
    block, y = model.own, model.before(x)
    expected = model.last(F.relu(block.conv3(block.conv2(block.conv1(y))) + y))
    torch.testing.assert_close(model(x), expected)


@each_surgery
@pytest.mark.parametrize("expand_ratio", [1, 4])
@pytest.mark.parametrize("outputs", [CHANNELS, 2 * CHANNELS])
def test_squeeze_excite_in_the_forward_of_a_block_is_passed_over(surgery, expand_ratio, outputs):
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), MBConvBlock(CHANNELS, outputs, expand_ratio))
    randomize(model)
    plan = surgery.apply(model, min_channels=1)
    squeezing = {"1._se_reduce", "1._se_expand"}
    reasons = {site.name: site.reason for site in plan.passed_over}
    assert reasons == dict.fromkeys(squeezing, "inside the attention of MBConvBlock '1'")
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(attended_modules(model)) == convolutions - squeezing
    with pytest.raises(PlacementError, match="has no attention of its own to replace or remove"):
        apply_eca(model, replace=True)


def test_the_block_without_squeeze_excite_is_attended_whole():
    model = nn.Sequential(MBConvBlock(CHANNELS, CHANNELS, se_ratio=None))
    assert len(plan_eca(model, min_channels=1).chosen) == 3


def test_sites_of_one_position_in_the_block_are_noted():
    model = nn.Sequential(MBConvBlock(CHANNELS, CHANNELS))
    plan = plan_eca(model, min_channels=1, example=torch.randn(1, CHANNELS, 8, 8))
    noted = {s.name for s in plan.sites if any("one position" in note for note in s.notes)}
    assert noted == {"0._se_reduce", "0._se_expand"}
