"""Random forward passes: programs over a few fused modules with all kinds of Python.

The network is fused while its forward is the plainest one, so that every convolution defers its
output and every norm expects an addition and a ReLU. Then it runs another one.
"""

import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHANNELS = 4


class StopError(Exception):
    """Raised in the middle of a forward."""


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return -dy


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, dy):
        return 3 * dy


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 3 * x * x * dy


class DoubledInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x + 1


class Random(nn.Module):
    """Three convolutions, norms and ReLUs, and a forward that is a program."""

    def __init__(self):
        super().__init__()
        for i, (kernel, inplace) in enumerate([(1, True), (3, False), (1, True)]):
            conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2)
            self.add_module(f"convs{i}", conv)
            self.add_module(f"norms{i}", nn.BatchNorm2d(CHANNELS))
            self.add_module(f"relus{i}", nn.ReLU(inplace))
        self.program: list | None = None
        self.kept: list = []

    def forward(self, x):
        if self.program is None:
            for i in range(3):
                _block(self, values := [x], 0, i)
                x = values[-1]
            return x
        values = [x]
        with suppress(StopError):
            run(self, self.program, values)
        return tuple(values[-2:])


def run(net: Random, program: list, values: list[Tensor]) -> None:
    for name, arguments in program:
        STEPS[name](net, values, *arguments)


def part(net: Random, kind: str, j: int) -> nn.Module:
    return net.get_submodule(f"{kind}{j}")


def _apply(function: Callable[[Tensor], Tensor]) -> Callable:
    """Make a step that computes a new value from an older one."""

    def step(net, values, i):
        values.append(function(values[i % len(values)]))

    return step


def _module(kind: str) -> Callable:
    def step(net, values, i, j):
        values.append(part(net, kind, j)(values[i % len(values)]))

    return step


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    def step(net, values, i, j):
        values.append(function(values[i % len(values)], values[j % len(values)]))

    return step


def _block(net, values, i, j):
    x = values[i % len(values)]
    values.append(part(net, "relus", j)(part(net, "norms", j)(part(net, "convs", j)(x)) + x))


def _branch(net, values, i, j):
    y = part(net, "convs", j)(values[i % len(values)])
    z = part(net, "norms", j)(y)
    values.append(z + y.mean() if isinstance(y, Tensor) else z)


def _keep(net, values, i):
    net.kept.append(values[i % len(values)])


def _shadow(net, values, i):
    """Replace a value, so that only what was stored of it remains."""
    values[i % len(values)] = values[-1]


def _loop(net, values, times, program):
    for _ in range(times):
        run(net, program, values)


def _without_gradients(net, values, program):
    with torch.no_grad():
        run(net, program, values)


def _caught(net, values, program):
    with suppress(StopError):
        run(net, [*program, ("stop", ())], values)


def _stop(net, values):
    raise StopError


def _closure(net, values, i, j):
    y = part(net, "norms", j)(part(net, "convs", j)(values[i % len(values)]))

    def later():
        return F.relu(y + y.detach())

    values.append(part(net, "convs", j)(y))
    values.append(later())


def _checkpointed(net, values, i, reentrant, program):
    def inside(x):
        own = [x]
        run(net, program, own)
        return own[-1]

    x = values[i % len(values)]
    if not torch.is_grad_enabled():
        values.append(inside(x))
    else:
        # Used as it is, once: or a norm at the end would move its statistics again when it is
        # recomputed, which it is not for a ReLU that was fused with it.
        values.append(checkpoint(inside, x, use_reentrant=reentrant) * 1)


def _hooked(net, values, i):
    y = values[i % len(values)]
    if y.requires_grad and not y._is_view():  # of some views, torch crashes
        y.register_hook(lambda d: 2 * d)


def _in_place(function: Callable[[Tensor], Any]) -> Callable:
    def step(net, values, i):
        function(values[i % len(values)])

    return step


def _added_in_place(net, values, i, j):
    y = values[i % len(values)]
    y += values[j % len(values)]
    values[i % len(values)] = y


def _in_a_view(x):
    x.view(-1)[0] = 0.5


STEPS: dict[str, Callable] = {
    "conv": _module("convs"),
    "norm": _module("norms"),
    "relu": _module("relus"),
    "block": _block,
    "branch": _branch,
    "functional relu": _apply(F.relu),
    "relu method": _apply(Tensor.relu),
    "plus": _pair(lambda a, b: a + b),
    "torch.add": _pair(torch.add),
    "times": _pair(lambda a, b: a * b),
    "cat": _pair(lambda a, b: torch.cat([a, b]).chunk(2)[0]),
    "tanh": _apply(torch.tanh),
    "identity": _apply(lambda x: x),
    "centre": _apply(lambda x: x - x.mean()),
    "detach": _apply(lambda x: x.detach()),
    "numbers": _apply(lambda x: x + x.detach().numpy().max()),
    "clone": _apply(lambda x: x.clone()),
    "flip": _apply(lambda x: x.flip(-1)),
    "view": _apply(lambda x: x.view(len(x), -1).view_as(x)),
    "reverse": _apply(Reverse.apply),
    "same": _apply(Same.apply),
    "cube": _apply(lambda x: Cube.apply(x.tanh())),
    "cube of it": _apply(lambda x: Cube.apply(x) / 100),
    "scripted": _apply(lambda x: scripted(x) / 10),
    "keep": _keep,
    "shadow": _shadow,
    "loop": _loop,
    "no_grad": _without_gradients,
    "caught": _caught,
    "stop": _stop,
    "closure": _closure,
    "checkpoint": _checkpointed,
    "hook": _hooked,
    "relu_": _in_place(Tensor.relu_),
    "double": _in_place(lambda x: x.mul_(2)),
    "zero": _in_place(_in_a_view),
    "add_": _added_in_place,
    "doubled": _apply(lambda x: DoubledInPlace.apply(x)),
}
IN_PLACE = {"relu_", "double", "zero", "add_", "doubled"}
_WEIGHTS = {"conv": 6, "norm": 8, "relu": 5, "block": 2, "plus": 5, "keep": 3, "functional relu": 3,
            "stop": 0.15, "shadow": 2, "detach": 0.5}  # fmt: skip


def draw(dice: random.Random, length: int, in_place: bool, depth: int = 0) -> list:
    """Draw a program."""
    names = [name for name in STEPS if in_place or name not in IN_PLACE]
    weights = [_WEIGHTS.get(name, 1) for name in names]
    return [_step(dice, name, in_place, depth) for name in dice.choices(names, weights, k=length)]


def _step(dice: random.Random, name: str, in_place: bool, depth: int) -> tuple[str, tuple]:
    def value() -> int:
        # Mostly the most recent values.
        return -1 if dice.random() < 0.7 else -dice.randint(1, 6)

    def inner() -> list:
        return draw(dice, dice.randint(1, 4), in_place, depth + 1)

    if name in ("loop", "no_grad", "caught", "checkpoint") and depth > 1:
        return "identity", (value(),)
    if name in ("conv", "norm", "relu", "block", "branch", "closure"):
        return name, (value(), dice.randrange(3))
    if name in ("plus", "torch.add", "times", "cat", "add_"):
        return name, (value(), value())
    if name == "loop":
        return name, (dice.randint(0, 2), inner())
    if name == "checkpoint":
        return name, (value(), dice.random() < 0.5, inner())
    if name in ("no_grad", "caught"):
        return name, (inner(),)
    return name, () if name == "stop" else (value(),)


def outcome(net: Random, program: list, x: Tensor, mode: str) -> dict[str, Tensor]:
    """Run a program forward, and in training backward; return all resulting numbers."""
    net.kept, net.program = [], program
    net.zero_grad()
    own = x.clone().requires_grad_(mode in ("train", "eval"))
    contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
    with contexts.get(mode, nullcontext)():
        outputs = [*net(own * 1), *net.kept]
        found = {f"output {i}": y.detach().clone() for i, y in enumerate(outputs)}
        found |= {
            f"says {i}": torch.tensor([y.requires_grad, *y.shape]) for i, y in enumerate(outputs)
        }
    if mode in ("train", "eval"):
        used = [y for y in outputs if y.requires_grad]
        if used:
            sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
                for y in used).backward()  # fmt: skip
        found |= {f"d {n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        found |= {} if own.grad is None else {"dx": own.grad}
    return found | {name: value.clone() for name, value in net.state_dict().items()}
