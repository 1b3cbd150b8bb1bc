"""The modules of random trees: each maps ``(N, C, H, W)`` to the same shape."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops import SqueezeExcitation

from composer_attn.functional import apply_eca

SIZE = 5


class OwnConvolution(nn.Conv2d):
    """A convolution that overrides forward."""

    def forward(self, x):
        return super().forward(x.relu())


class KeywordConvolution(nn.Conv2d):
    """A convolution that takes more than its input."""

    def forward(self, x, *, gain=1.0):
        return gain * super().forward(x)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 2 * weight


class SEModule(nn.Module):
    """An attention as papers' code has them, known by the name of its class."""

    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, 4), nn.Linear(4, channels)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class QuantizedConvolution(nn.Module):
    """A convolution in eight bits between two that are not."""

    def __init__(self, conv):
        super().__init__()
        self.conv = torch.ao.nn.quantized.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding
        )
        weight = torch.quantize_per_tensor(conv.weight.detach(), 0.1, 0, torch.qint8)
        self.conv.set_weight_bias(weight, conv.bias.detach())
        self.conv.scale = 0.1

    def forward(self, x):
        return self.conv(torch.quantize_per_tensor(x.float(), 0.1, 0, torch.quint8)).dequantize()


class Summed(nn.Module):
    """Its parts, in a ModuleList, side by side."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


class Named(nn.Module):
    """Its parts, in a ModuleDict, one after the other."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleDict({f"part{i}": part for i, part in enumerate(parts)})

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


class Residual(nn.Module):
    """A residual block that can be traced; its shortcut may be None."""

    def __init__(self, parts):
        super().__init__()
        self.branch = nn.Sequential(*parts)
        self.shortcut = None

    def forward(self, x):
        return x + self.branch(x)


class Branching(nn.Module):
    """A residual block that cannot be traced, with the same part used twice."""

    def __init__(self, parts):
        super().__init__()
        self.first = nn.Sequential(*parts)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x)) + x if x.sum() > 0 else self.first(x) + x


class KnowingItsParent(nn.Module):
    """Children that hold their parent: one as a child of theirs, the other as an attribute."""

    def __init__(self, parts):
        super().__init__()
        self.body = nn.Sequential(*parts)
        inner = Named([nn.Identity()])
        inner.add_module("parent", self)
        self.inner = inner
        object.__setattr__(self.body, "above", self)

    def forward(self, x):
        return self.inner(self.body(x))


class Unused(nn.Module):
    """A part that forward never calls, one that is None, and a parameter of its own."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.spare = nn.Conv2d(3, 16, 1)
        self.none = None
        self.register_module("missing", None)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.parts(x) * self.gain


def _conv(channels, groups=1, bias=True, cls=nn.Conv2d):
    return cls(channels, channels, 3, padding=1, groups=groups, bias=bias)


def _pruned(channels):
    return prune.random_unstructured(_conv(channels), "weight", 0.5)


def _parametrized(channels):
    conv = _conv(channels)
    parametrize.register_parametrization(conv, "weight", Doubled())
    return conv


def _frozen(channels):
    return _conv(channels).requires_grad_(False)


def _occupied(channels):
    conv = _conv(channels)
    conv.attention = nn.Identity()
    return conv


def _replaced(channels):
    conv = _conv(channels)
    conv.forward = torch.relu
    return conv


def _hooked(channels):
    conv = _conv(channels)
    conv.register_forward_pre_hook(_double_input)
    return conv


def _double_input(module, arguments):
    return (2 * arguments[0],)


def _built_lazily(channels):
    conv = nn.LazyConv2d(channels, 3, padding=1)
    conv(torch.zeros(1, channels, SIZE, SIZE))
    return conv


def _attended(channels):
    model = nn.Sequential(_conv(channels))
    apply_eca(model, min_channels=1)
    return model


LEAVES = {
    "conv": _conv,
    "conv without bias": lambda c: _conv(c, bias=False),
    "pointwise": lambda c: nn.Conv2d(c, c, 1),
    "depthwise": lambda c: _conv(c, groups=c),
    "conv and norm": lambda c: nn.Sequential(_conv(c), nn.BatchNorm2d(c), nn.ReLU()),
    "conv and group norm": lambda c: nn.Sequential(_conv(c), nn.GroupNorm(2, c)),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1),
    "subclass": lambda c: _conv(c, cls=OwnConvolution),
    "with keywords": lambda c: _conv(c, cls=KeywordConvolution),
    "norm": nn.BatchNorm2d,
    "relu": lambda c: nn.ReLU(),
    "identity": lambda c: nn.Identity(),
    "dropout": lambda c: nn.Dropout(0.1),
    "empty": lambda c: nn.Sequential(),
    "own attention": lambda c: SqueezeExcitation(c, 4),
    "attention by name": SEModule,
    "weight norm": lambda c: parametrizations.weight_norm(_conv(c)),
    "old weight norm": lambda c: nn.utils.weight_norm(_conv(c)),
    "spectral norm": lambda c: parametrizations.spectral_norm(_conv(c)),
    "parametrized": _parametrized,
    "pruned": _pruned,
    "frozen": _frozen,
    "occupied": _occupied,
    "replaced": _replaced,
    "hooked": _hooked,
    "built lazily": _built_lazily,
    "lazy": lambda c: nn.LazyConv2d(c, 3, padding=1),
    "quantized": lambda c: QuantizedConvolution(_conv(c)),
    "quantization aware": lambda c: torch.ao.nn.qat.Conv2d(
        c, c, 3, padding=1, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    ),
    "scripted": lambda c: torch.jit.script(nn.ReLU()),
    "attended": _attended,
}

CONTAINERS = {
    "sequence": lambda parts: nn.Sequential(*parts),
    "sum": Summed,
    "dict": Named,
    "residual": Residual,
    "branching": Branching,
    "unused": Unused,
    "cycle": KnowingItsParent,
}
