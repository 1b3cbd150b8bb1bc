"""What an attended block computes: timm's networks, and every placement written out."""

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlock
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck

from composer_attn.functional import attended_modules
from tests.surgeries import each_surgery

TIMM = {
    "squeeze_excite": ("seresnet50", {}),
    "eca": ("resnet50", {"block_args": {"attn_layer": "eca"}}),
}
ARGUMENTS = {"squeeze_excite": {"latent_channels": 1 / 16, "bias": True}, "eca": {}}


def our_key(key: str) -> str:
    """Rename a parameter of timm's attention, whose layers are 1x1 convolutions."""
    return key.replace(".se.", ".bn3.attention.")


@each_surgery
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@torch.no_grad()
def test_outputs_are_those_of_timms_network_with_its_weights(surgery, library):
    kind = "eca" if surgery.attention.__name__.startswith("Efficient") else "squeeze_excite"
    name, options = TIMM[kind]
    theirs = timm.create_model(name, pretrained=False, **options)
    for key, parameter in theirs.named_parameters():
        if key.endswith("bn3.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # timm zeroes it: no branch would count
    create = models.resnet50 if library == "torchvision" else timm.models.resnet50
    ours = create()
    surgery.apply(ours, min_channels=1, placement="residual", **ARGUMENTS[kind])
    wanted = ours.state_dict()
    weights = {our_key(key): value for key, value in theirs.state_dict().items()}
    assert weights.keys() == wanted.keys()
    ours.load_state_dict({key: value.reshape(wanted[key].shape) for key, value in weights.items()})

    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = theirs.double().eval()(x)
    torch.testing.assert_close(ours.double().eval()(x), expected, rtol=1e-10, atol=1e-10)


def halved(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def mbconv(**changes):
    shape = {"input_channels": 16, "out_channels": 16, "stride": 1, **changes}
    config = MBConvConfig(4, 3, num_layers=1, width_mult=1, depth_mult=1, **shape)
    return MBConv(config, 0.0, nn.BatchNorm2d)


def regnet(inputs, stride):
    return ResBottleneckBlock(inputs, 16, stride, nn.BatchNorm2d, nn.ReLU, 8, 1.0, 0.25)


def no_shortcut(block, x):
    return None


def input_itself(block, x):
    return x


def downsample(block, x):
    return x if block.downsample is None else block.downsample(x)


def basic(block, x):
    return block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))


def bottleneck(block, x):
    x = block.bn1(block.conv1(x)).relu()
    return block.bn3(block.conv3(block.bn2(block.conv2(x)).relu()))


def layers(block, x):
    return block.block(x)


# (block, its branch by hand up to the point, what follows up to the addition, its shortcut by hand,
# whether an activation follows the addition)
BLOCKS = {
    "BasicBlock": (lambda: BasicBlock(16, 16), basic, downsample, True),
    "BasicBlock, downsampling": (
        lambda: BasicBlock(16, 32, 2, halved(16, 32, 2)),
        basic,
        downsample,
        True,
    ),
    "Bottleneck": (lambda: Bottleneck(16, 4), bottleneck, downsample, True),
    "Bottleneck, downsampling": (
        lambda: Bottleneck(16, 8, 2, halved(16, 32, 2)),
        bottleneck,
        downsample,
        True,
    ),
    "InvertedResidual": (
        lambda: InvertedResidual(16, 16, 1, 4),
        lambda block, x: block.conv(x),
        input_itself,
        False,
    ),
    "InvertedResidual, narrowing": (
        lambda: InvertedResidual(16, 8, 2, 4),
        lambda block, x: block.conv(x),
        no_shortcut,
        False,
    ),
    "MBConv": (mbconv, layers, input_itself, False),
    "MBConv, widening": (lambda: mbconv(out_channels=24, stride=2), layers, no_shortcut, False),
    "CNBlock": (lambda: CNBlock(16, 0.7, 0.0), layers, input_itself, False),
    "ResBottleneckBlock": (
        lambda: regnet(16, 1),
        lambda block, x: block.f(x),
        input_itself,
        True,
    ),
    "ResBottleneckBlock, downsampling": (
        lambda: regnet(8, 2),
        lambda block, x: block.f(x),
        lambda block, x: block.proj(x),
        True,
    ),
}
each_block = pytest.mark.parametrize(
    ("build", "branch", "shortcut", "activated"), BLOCKS.values(), ids=BLOCKS
)


def randomized(block):
    """Give norms weights and statistics that tell channels apart."""
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return block.double()


def attended_and_plain(surgery, build, placement):
    """Attend one block, as the only child of a network, and keep a plain copy."""
    plain = randomized(build())
    network = nn.Sequential(copy.deepcopy(plain))
    surgery.apply(network, min_channels=1, placement=placement)
    return network, plain


def by_formula(plain, branch, shortcut, activated, x, placement, attention):
    keep = lambda y: y  # noqa: E731
    at = {place: attention if place == placement else keep
          for place in ("residual", "pre", "post", "identity")}  # fmt: skip
    y = at["residual"](branch(plain, at["pre"](x)))
    y = plain.layer_scale * y if isinstance(plain, CNBlock) else y
    added = shortcut(plain, x)
    y = y if added is None else y + at["identity"](added)
    return at["post"](y.relu() if activated else y)


@each_surgery
@each_block
@pytest.mark.parametrize("placement", ["residual", "pre", "post", "identity"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_block_computes_the_written_out_formula(
    surgery, build, branch, shortcut, activated, placement, training
):
    x = torch.randn(4, 8 if build().__class__ is ResBottleneckBlock and build().proj else 16, 9, 9)
    x = x.double()
    if shortcut is no_shortcut and placement == "identity":
        with pytest.warns(UserWarning, match="it has no shortcut"):
            network, _ = attended_and_plain(surgery, build, placement)
        assert attended_modules(network) == {}
        return
    network, plain = attended_and_plain(surgery, build, placement)
    (attention,) = attended_modules(network).values()
    network.train(training)
    plain.train(training)
    expected = by_formula(
        plain, branch, shortcut, activated, x, placement, copy.deepcopy(attention)
    )
    actual = network(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    reference = nn.Sequential(randomized(build()))
    reference.load_state_dict({f"0.{key}": value for key, value in plain.state_dict().items()})
    assert (reference.train(training)(x) - actual).abs().max() > 1e-3


@each_surgery
def test_after_norms_a_block_computes_the_written_out_formula(surgery):
    x = torch.randn(4, 16, 9, 9, dtype=torch.float64)
    network, plain = attended_and_plain(surgery, BLOCKS["BasicBlock, downsampling"][0], "norm")
    attention = attended_modules(network)
    assert list(attention) == ["0.bn1", "0.bn2", "0.downsample.1"]
    y = attention["0.bn1"](plain.bn1(plain.conv1(x))).relu()
    y = attention["0.bn2"](plain.bn2(plain.conv2(y)))
    expected = (y + attention["0.downsample.1"](plain.downsample(x))).relu()
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@each_surgery
@pytest.mark.parametrize("placement", ["norm", "residual", "pre", "post", "identity"])
def test_the_blocks_own_squeeze_excitation_stays(surgery, placement):
    network, _ = attended_and_plain(surgery, mbconv, placement)
    own = network[0].block[2]
    assert type(own).__name__ == "SqueezeExcitation"
    assert not any(name.startswith("0.block.2") for name in attended_modules(network))
