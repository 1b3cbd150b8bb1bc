"""Small networks with attention of their own after a norm and an activation, and their twins."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.functional import fuse_attention

CHANNELS = 16


def of_torchvision(activation=nn.SiLU, gate=nn.Sigmoid) -> nn.Module:
    misc = pytest.importorskip("torchvision.ops.misc")
    return misc.SqueezeExcitation(CHANNELS, 4, partial(activation, inplace=True), gate)


def of_timm(kind: str, **options) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    if kind == "SqueezeExcite":
        layers = pytest.importorskip("timm.models._efficientnet_blocks")
    return getattr(layers, kind)(CHANNELS, **options)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": of_torchvision,
    "torchvision, MobileNet-V3": partial(of_torchvision, nn.ReLU, nn.Hardsigmoid),
    "SqueezeExcite": partial(of_timm, "SqueezeExcite", act_layer=nn.SiLU),
    "SEModule": partial(of_timm, "SEModule", rd_channels=4),
    "EffectiveSEModule": partial(of_timm, "EffectiveSEModule"),
    "EcaModule": partial(of_timm, "EcaModule"),
    "ours, SE": partial(SqueezeExcitation, CHANNELS, 4, bias=True),
    "ours, ECA from the identity": partial(EfficientChannelAttention, CHANNELS, start="identity"),
}


class Own(nn.Module):
    """A convolution, norm, activation, attention, and a convolution; with a given activation."""

    def __init__(
        self, attention: nn.Module, activation: nn.Module | None, function=None, normed=True
    ):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3)
        self.norm = nn.BatchNorm2d(CHANNELS) if normed else nn.Identity()
        self.act, self.function = activation, function
        self.attn, self.last = attention, nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = self.act(x) if self.function is None else self.function(x)
        return self.last(self.attn(x))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": partial(nn.ReLU, inplace=True),
    "relu6": nn.ReLU6,
    "relu6 in place": partial(nn.ReLU6, inplace=True),
    "leaky relu": partial(nn.LeakyReLU, 0.2),
    "leaky relu in place": partial(nn.LeakyReLU, 0.2, inplace=True),
    "silu": nn.SiLU,
    "silu in place": partial(nn.SiLU, inplace=True),
    "hardswish": nn.Hardswish,
    "hardswish in place": partial(nn.Hardswish, inplace=True),
    "gelu": nn.GELU,
    "gelu by tanh": partial(nn.GELU, approximate="tanh"),
    "mish in place": partial(nn.Mish, inplace=True),
    "elu": partial(nn.ELU, 0.7),
    "elu in place": partial(nn.ELU, 0.7, inplace=True),
    "identity": nn.Identity,
}

FUNCTIONS: dict[str, Callable] = {
    "F.relu": F.relu,
    "F.relu in place": partial(F.relu, inplace=True),
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.silu": F.silu,
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x, 0.3),
    "F.elu_": F.elu_,
    "F.hardswish": F.hardswish,
    "F.mish": F.mish,
}


def randomized(model: nn.Module) -> nn.Module:
    """Randomize the norms: freshly initialized ones would hide faults."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def own_pair(model: nn.Module, backend: str = "reference", fused: int = 1, **options):
    """Return a network in float64 with random norms, and a copy of it that is fused."""
    torch.manual_seed(0)
    plain = randomized(model).double()
    twin = copy.deepcopy(plain)
    assert len(fuse_attention(twin, backend, **options).fused) == fused
    return plain, twin


def small(kind: str = "torchvision", activation: str = "silu in place", normed=True) -> Own:
    return Own(ATTENTIONS[kind](), MODULES[activation](), normed=normed)


def everything(model: nn.Module, x: torch.Tensor, call=None) -> dict[str, torch.Tensor]:
    """Run forward and backward; return output, all gradients and all state."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    y = (model if call is None else call)(x)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    (y * weight).sum().backward()
    found = {"output": y.detach(), "input": x.grad}
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {name: each.clone() for name, each in model.state_dict().items()}


def assert_same(found: dict, expected: dict, tolerance: float = 1e-12) -> None:
    """Compare to a share of each tensor's largest number (at least 1)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = tolerance * max(1, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) <= bound, name


class Other(Own):
    """Does something else with the output of the norm or the activation."""

    def __init__(self, use, activation="silu", kind="torchvision"):
        super().__init__(ATTENTIONS[kind](), MODULES[activation]())
        self.use = use

    def forward(self, x):
        return self.last(self.use(self, self.norm(self.conv(x))))


OTHERS = {
    "the norm's output is used, too": lambda s, z: s.attn(s.act(z)) + z,
    "the activation's output is used, too": lambda s, z: (lambda u: s.attn(u) * u.mean())(s.act(z)),
    "attended twice": lambda s, z: (lambda u: s.attn(u) + s.attn(u))(s.act(z)),
    "activated twice": lambda s, z: s.attn(s.act(s.act(z))),
    "attention without activation": lambda s, z: s.attn(z),
    "activation alone": lambda s, z: s.act(z) * 2,
    "changed in between": lambda s, z: s.attn(s.act(z.mul_(2))),
    "changed after the activation": lambda s, z: s.attn(s.act(z).add_(1)),
    "branches on its values": lambda s, z: s.attn(s.act(z)) if z.sum() > 0 else s.act(z),
    "detached": lambda s, z: s.attn(s.act(z).detach()) + z,
    "no gradients in between": lambda s, z: _without(s.act, z) + s.attn(s.act(z)),
    "kept": lambda s, z: (setattr(s, "held", z), s.attn(s.act(z)), s.held)[1] + s.held,
    "a view": lambda s, z: s.attn(s.act(z)[:, :, 1:]),
    "added, then activated": lambda s, z: s.attn(s.act(z + z.mean())),
    "added to a map": lambda s, z: s.attn(s.act(z + z.flip(0))),
    "keyword": lambda s, z: s.attn(input=s.act(z)),
    "attended again": lambda s, z: s.attn(s.attn(s.act(z))),
    "activated after": lambda s, z: s.act(s.attn(s.act(z))),
}


def _without(act, z):
    with torch.no_grad():
        return act(z.clone())
