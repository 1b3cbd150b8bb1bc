"""What does attention joined with batch norm cost, beside batch norm alone and a copy of the data?

python -m benchmarks.op --layout channels_last --threads 1
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from composer.algorithms.squeeze_excite import SqueezeExcite2d
from torch import Tensor, nn

from benchmarks.common import (
    RATIO,
    RESULTS,
    Device,
    Layout,
    append,
    ratios,
    show,
    surroundings,
    take_turns,
    timed,
)
from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import attend_then_normalize

# Where ResNet-50 attends, at 128x128 on a CPU and at 224x224 on a GPU.
SHAPES = {
    "cpu": "16x128x32x32,16x128x16x16,16x512x16x16,16x256x8x8,16x1024x8x8,16x512x4x4,16x2048x4x4",
    "cuda": "256x64x56x56,256x256x56x56,256x128x28x28,256x512x28x28,256x1024x14x14,256x2048x7x7",
}
_LATENT = 64
# Forward reads twice and writes once; backward reads twice two maps and writes one.
_PASSES = 8
_PASSES_OF_COPY = 2
_MINIMUM = 0.02  # seconds of one measurement: short actions are repeated


class Dtype(str, Enum):
    """Of the feature map; parameters are float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Attention(str, Enum):
    """Which one."""

    SE = "se"
    ECA = "eca"


@dataclass(frozen=True)
class Contender:
    """A function of a feature map, and the parameters that it trains."""

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]


def contenders(channels: int, attention: Attention, relu: bool, backends: list[str], device: str):
    """Build batch norm alone, Composer's SE and our attention before it, ours joined with it."""
    found = []

    def add(name: str, module: nn.Module | None, joint: str | None = None) -> None:
        norm = nn.BatchNorm2d(channels).to(device)
        module = None if module is None else module.to(device)

        def forward(x: Tensor) -> Tensor:
            if joint is not None:
                return attend_then_normalize(x, module, norm, joint, relu=relu)
            y = norm(x if module is None else module(x))
            return y.relu_() if relu else y

        trained = [*norm.parameters(), *(() if module is None else module.parameters())]
        found.append(Contender(name, forward, trained))

    def ours() -> nn.Module:
        if attention is Attention.ECA:
            return EfficientChannelAttention(channels)
        return SqueezeExcitation(channels, _LATENT)

    add("batch norm", None)
    add("Composer's SE, batch norm", SqueezeExcite2d(channels, _LATENT))
    add(f"{attention.value}, batch norm", ours())
    for backend in backends:
        add(f"{attention.value} + batch norm, {backend}", ours(), backend)
    return found


def measure(
    shape: tuple[int, ...], entries: list[Contender], dtype: Dtype, layout: Layout, device: str,
    rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Time forward and backward of each, and a copy, in turns."""
    x, dy = (
        torch.randn(shape, device=device, dtype=getattr(torch, dtype.value))
        .to(memory_format=layout.memory_format)
        for _ in range(2)
    )  # fmt: skip
    x.requires_grad_()
    target = torch.empty_like(dy)

    def step(entry: Contender) -> None:
        # Layers take 16 bits by autocast, as they do in a network.
        with torch.autocast(device, x.dtype, enabled=x.dtype != torch.float32):
            y = entry.forward(x)
        torch.autograd.grad(y, [x, *entry.parameters], dy)

    actions = [lambda: target.copy_(dy), *(lambda entry=entry: step(entry) for entry in entries)]
    first = [timed(action) for action in actions]
    repeats = [max(1, round(_MINIMUM / timed(action))) for action in actions]
    turns = take_turns([_repeated(*pair) for pair in zip(actions, repeats, strict=True)], rounds)
    copy, *seconds = [[s / n for s in turn] for turn, n in zip(turns, repeats, strict=True)]
    return [
        {
            "shape": "x".join(map(str, shape)),
            "what": entry.name,
            "milliseconds": round(1e3 * sorted(own)[len(own) // 2], 4),
            **ratios(own, seconds[0]),
            "share_of_copy_bandwidth": _share(own, copy),
            "first_call_seconds": round(before, 2),
        }
        for entry, own, before in zip(entries, seconds, first[1:], strict=True)
    ]


def _repeated(action: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            action()

    return run


def _share(seconds: list[float], copy: list[float]) -> float:
    """The time that a copy of the bytes the joint passes move would take, over the time taken."""
    limit = ratios(copy, seconds)["ratio"] * _PASSES / _PASSES_OF_COPY
    return round(limit, 3)


def main(
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.CPU,
    dtype: Annotated[Dtype, typer.Option(help="Of the feature map.")] = Dtype.FLOAT32,
    layout: Annotated[Layout, typer.Option(help="Its memory format.")] = Layout.NCHW,
    shapes: Annotated[
        str, typer.Option(help="Such as 16x256x28x28,16x512x14x14; ResNet-50's if empty.")
    ] = "",
    attention: Annotated[Attention, typer.Option(help="Which attention.")] = Attention.SE,
    relu: Annotated[bool, typer.Option(help="Whether a ReLU follows, joined as well.")] = True,
    backends: Annotated[
        str, typer.Option(help="Ours to measure, such as cpp,inductor; the fastest if empty.")
    ] = "",
    threads: Annotated[int, typer.Option(min=0, help="Threads of a CPU; 0: torch's own.")] = 0,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each.")] = 15,
    results: Annotated[Path, typer.Option(help="CSV file to append to.")] = RESULTS / "op.csv",
) -> None:
    """Time attention with batch norm, forward and backward, in turns with batch norm alone."""
    torch.manual_seed(0)
    if threads:
        torch.set_num_threads(threads)
    asked = backends.split(",") if backends else ["auto", "reference"]
    settings = surroundings(device.value) | {
        "dtype": dtype.value, "layout": layout.value, "relu": relu, "rounds": rounds,
    }  # fmt: skip
    rows = []
    for text in (shapes or SHAPES[device.value]).split(","):
        shape = tuple(map(int, text.split("x")))
        entries = contenders(shape[1], attention, relu, asked, device.value)
        rows += measure(shape, entries, dtype, layout, device.value, rounds)
    title = "forward and backward, {dtype}, {layout}, relu {relu}, {threads} threads, {device}"
    columns = ("shape", "what", "ms", "/ batch norm (quartiles)", "of copy bandwidth", "first s")
    line = (
        "{shape}|{what}|{milliseconds:.3f}|" + RATIO + "|"
        "{share_of_copy_bandwidth:.0%}|{first_call_seconds:.2f}"
    )
    show(title.format(**settings), columns, [line.format(**row).split("|") for row in rows])
    append(results, [settings | row for row in rows])


if __name__ == "__main__":
    typer.run(main)
