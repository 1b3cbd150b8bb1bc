"""Norm, activation and attention, as modules and as one fused operation."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer_attn.ops import activate_attend, normalize_activate, normalize_activate_attend
from composer_attn.ops.excitations import Described, neighbours, one_layer, two_layers
from tests.ops.regions import ATTENTIONS, NORMS, distance, draw

MODULES = {
    "identity": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.3), "hardswish": nn.Hardswish, "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, "tanh"), "mish": nn.Mish, "elu": partial(nn.ELU, 0.7),
}  # fmt: skip


class Foreign(nn.Module):
    """An attention as other packages write it: layers over averages, then a gate."""

    def __init__(self, channels: int, kind: str, gate: str = "sigmoid", dtype=None):
        super().__init__()
        self.kind, self.gate = kind, gate
        if kind == "two":
            self.fc1 = nn.Conv2d(channels, 3, 1, dtype=dtype)
            self.fc2 = nn.Conv2d(3, channels, 1, dtype=dtype)
        elif kind == "linear":
            self.fc1 = nn.Linear(channels, 3, bias=False, dtype=dtype)
            self.fc2 = nn.Linear(3, channels, dtype=dtype)
        elif kind == "one":
            self.fc1 = nn.Conv2d(channels, channels, 1, dtype=dtype)
        else:
            self.fc1 = nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(2)
        if self.kind in ("two", "one"):
            logits = self.fc1(means[..., None, None])
            logits = self.fc2(F.silu(logits)) if self.kind == "two" else logits
            logits = logits.flatten(1)
        elif self.kind == "linear":
            logits = self.fc2(F.gelu(self.fc1(means)))
        else:
            logits = self.fc1(means[:, None])[:, 0]
        gates = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid, "tanh": torch.tanh,
                 "relu": torch.relu}  # fmt: skip
        s = gates[self.gate](logits)
        return x * s[(...,) + (None,) * (x.dim() - 2)]

    def described(self, channels: int) -> Described:
        if self.kind == "two":
            return two_layers(self.fc1, self.fc2, "silu", self.gate)
        if self.kind == "linear":
            return two_layers(self.fc1, self.fc2, nn.GELU(), self.gate)
        if self.kind == "one":
            return one_layer(self.fc1, self.gate)
        return neighbours(channels, self.fc1, self.gate)


FOREIGN = ("two", "linear", "one", "neighbours")


@dataclass
class Site:
    """A norm, an activation and an attention, each of which may be absent, and what is added."""

    norm: nn.Module | None
    activation: nn.Module
    attention: nn.Module | None
    shortcut: bool = False

    def plain(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        z = x if self.norm is None else self.norm(x)
        if self.attention is None:
            return self.activation(z if shortcut is None else z + shortcut)
        y = self.attention(self.activation(z))
        return y if shortcut is None else y + shortcut

    def joint(self, x: Tensor, shortcut: Tensor | None = None, backend="reference") -> Tensor:
        attention = self.attention
        if isinstance(attention, Foreign):
            attention = attention.described(x.shape[1])
        if attention is None:
            call = partial(normalize_activate, x, self.norm, self.activation)
        elif self.norm is None:
            call = partial(activate_attend, x, self.activation, attention)
        else:
            call = partial(normalize_activate_attend, x, self.norm, self.activation, attention)
        return call(backend, shortcut=shortcut)

    def parameters(self) -> list[nn.Parameter]:
        modules = [module for module in (self.norm, self.attention) if module is not None]
        return [parameter for module in modules for parameter in module.parameters()]


PARTS = ("norm_attention", "norm", "attention")


def build(shape, activation="silu", attention="se", parts="norm_attention", dtype=torch.float64,
          training=True, gate="sigmoid", shortcut=False, **of_norm) -> Site:  # fmt: skip
    """Build a site with random parameters and running statistics."""
    channels, norm, attended = shape[1], None, None
    if "norm" in parts:
        norm = NORMS[len(shape)](channels, dtype=dtype, **of_norm).train(training)
        if norm.running_mean is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    if "attention" in parts:
        make = partial(Foreign, kind=attention) if attention in FOREIGN else ATTENTIONS[attention]
        attended = make(channels, gate=gate, dtype=dtype)
    site = Site(norm, MODULES[activation](), attended, shortcut)
    for parameter in site.parameters():
        nn.init.normal_(parameter)
    return site


def results(site: Site, function: Callable, x, shortcut, dy) -> dict[str, Tensor]:
    """Run forward and backward once: output, gradients, and the norm's state after it."""
    x = x.detach().clone().requires_grad_()
    shortcut = shortcut.detach().requires_grad_() if site.shortcut else None
    wanted = {"x": x} | ({"shortcut": shortcut} if site.shortcut else {})
    wanted |= {f"p{number}": value for number, value in enumerate(site.parameters())}
    y = function(x, shortcut)
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    buffers = {} if site.norm is None else dict(site.norm.named_buffers())
    found = {"y": y.detach()} | dict(zip(wanted, gradients, strict=True))
    return found | {name: value.clone() for name, value in buffers.items()}


def differences(site: Site, shape, backend: str, last=False, steps=1, mean=1.0) -> dict[str, float]:
    """Largest difference of each result, after some steps, relative to the largest value."""
    other = copy.deepcopy(site)
    for _ in range(steps):
        # Wide enough to reach every branch of every activation.
        x, shortcut, dy = (2 * draw(shape, last=last, mean=each) for each in (mean, 1, 1))
        expected = results(site, site.plain, x, shortcut, dy)
        found = results(other, partial(other.joint, backend=backend), x, shortcut, dy)
    assert len(shape) == 3 or found["y"].is_contiguous() == expected["y"].is_contiguous()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
    return {name: distance(found[name], expected[name]) for name in expected}
