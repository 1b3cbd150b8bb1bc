"""Attention and batch norm, as two modules and as one fused operation."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import attend_then_normalize, normalize_then_attend

ATTENTIONS = {
    "se": partial(SqueezeExcitation, latent_channels=3),
    "se_bias": partial(SqueezeExcitation, latent_channels=3, bias=True),
    "eca": partial(EfficientChannelAttention, kernel_size=3),
}
NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# Odd sizes, smaller and larger than a SIMD vector; a single image; a single position.
SHAPES = [(3, 5, 7), (2, 70, 35), (3, 6, 5, 7), (2, 131, 9, 9), (1, 8, 3, 3), (4, 37, 1, 1),
          (3, 37, 2, 2), (2, 4, 3, 2, 3)]  # fmt: skip
SMALL = SHAPES[2]


@dataclass
class Case:
    """A pair of modules, an order, and what follows them."""

    attention: nn.Module
    norm: nn.Module
    attention_first: bool = True
    relu: bool = False
    shortcut: bool = False

    def plain(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        pair = (self.attention, self.norm) if self.attention_first else (self.norm, self.attention)
        y = pair[1](pair[0](x))
        y = y if shortcut is None else y + shortcut
        return y.relu() if self.relu else y

    def joint(self, x: Tensor, shortcut: Tensor | None, backend: str = "reference") -> Tensor:
        function = attend_then_normalize if self.attention_first else normalize_then_attend
        options = {"relu": self.relu, "shortcut": shortcut}
        return function(x, self.attention, self.norm, backend, **options)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.attention.parameters(), *self.norm.parameters()]


def build(shape, attention="se", dtype=torch.float64, training=True, gate="sigmoid", start="paper",
          attention_first=True, relu=False, shortcut=False, **of_norm) -> Case:  # fmt: skip
    """Build a case with random parameters and running statistics."""
    channels = shape[1]
    attended = ATTENTIONS[attention](channels, gate=gate, start=start, dtype=dtype)
    norm = NORMS[len(shape)](channels, dtype=dtype, **of_norm).train(training)
    for parameter in [*attended.parameters(), *norm.parameters()]:
        nn.init.normal_(parameter)
    if norm.running_mean is not None:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return Case(attended, norm, attention_first, relu, shortcut)


def draw(shape, dtype=torch.float64, last: bool = False, mean: float = 3) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64) + mean
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.to(dtype)


def in_copies() -> saved_tensors_hooks:
    """Keep contiguous copies for backward, as torch's ``save_on_cpu`` does in pinned memory."""
    return saved_tensors_hooks(
        lambda saved: saved.detach().clone(memory_format=torch.contiguous_format),
        lambda kept: kept,
    )


def from_copies(case, backend: str) -> float:
    """Largest difference of a gradient from the modules', if copies of other strides are kept."""
    x, shortcut, dy = (draw(SMALL, last=True) for _ in range(3))
    wanted = [x.requires_grad_(), *case.parameters()]
    shortcut = shortcut if case.shortcut else None
    right = torch.autograd.grad(case.plain(x, shortcut), wanted, dy)
    with in_copies():
        y = case.joint(x, shortcut, backend)
    return max(map(distance, torch.autograd.grad(y, wanted, dy), right))


def results(case: Case, function, x, shortcut, dy) -> dict[str, Tensor]:
    """Run forward and backward once: output, gradients, and the norm's state after it."""
    x = x.detach().requires_grad_()
    shortcut = shortcut.detach().requires_grad_() if case.shortcut else None
    wanted = {"x": x} | ({"shortcut": shortcut} if case.shortcut else {})
    wanted |= {f"p{number}": value for number, value in enumerate(case.parameters())}
    y = function(x, shortcut)
    gradients = torch.autograd.grad(y, list(wanted.values()), dy)
    found = {"y": y.detach()} | dict(zip(wanted, gradients, strict=True))
    return found | {name: value.clone() for name, value in case.norm.named_buffers()}


def differences(case: Case, shape, backend: str, last: bool = False, steps: int = 1, **of_draw):
    """Largest difference of each result, after some steps, relative to the largest value."""
    other = copy.deepcopy(case)
    for _ in range(steps):
        x, shortcut, dy = (draw(shape, last=last, **of_draw) for _ in range(3))
        dy = dy - dy.mean()
        expected = results(case, case.plain, x, shortcut, dy)
        found = results(other, partial(other.joint, backend=backend), x, shortcut, dy)
    # Torch has no channels last for a single dimension, and nn.BatchNorm1d does not keep it.
    assert len(shape) == 3 or _strides(found["y"]) == _strides(expected["y"])
    assert [v.dtype for v in found.values()] == [v.dtype for v in expected.values()]
    return {name: distance(found[name], expected[name]) for name in expected}


def _strides(x: Tensor) -> list[int]:
    """The strides of dimensions with more than one element."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1."""
    largest = expected.double().abs().max().clamp_min(1)
    return float((found.double() - expected.double()).abs().max() / largest)
