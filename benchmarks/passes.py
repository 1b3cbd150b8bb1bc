"""How close to the speed of a copy is each pass over a feature map on a GPU?

python -m benchmarks.passes --dtype bfloat16 --layout channels_last
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.common import RATIO, RESULTS, Layout, append, ratios, show, surroundings, take_turns
from benchmarks.op import SHAPES, Dtype
from composer_attn.ops.backends.reference import statistics_dtype
from composer_attn.ops.backends.table import find_passes

# Feature maps that each pass reads and writes; a copy reads one and writes one.
_MAPS = {
    "copy": 2,
    "moments": 1,
    "affine, ReLU": 2,
    "affine, shortcut, ReLU": 3,
    "gradient sums, ReLU computed": 2,
    "gradient sums, ReLU from the output": 4,
    "input gradient, ReLU computed": 3,
    "input gradient": 3,
}
_CALLS = 20  # in one CUDA graph, so that launching kernels from Python does not count


def calls(x: torch.Tensor, dy: torch.Tensor, backend: str) -> dict[str, Callable[[], Any]]:
    """Return the passes under their names in ``_MAPS``."""
    passes = find_passes(backend, x)
    target, shortcut = torch.empty_like(x), torch.randn_like(x)
    a, b, c, d, e = torch.randn(5, *x.shape[:2], dtype=statistics_dtype(x), device=x.device)
    actions = [
        lambda: target.copy_(x),
        lambda: passes.moments(x),
        lambda: passes.affine(x, a, b, None, True),
        lambda: passes.affine(x, a, b, shortcut, True),
        lambda: passes.gradient_sums(dy, x, c, (a, b)),
        lambda: passes.gradient_sums(dy, x, c, shortcut),
        lambda: passes.input_gradient(dy, x, a, c, d, e, b),
        lambda: passes.input_gradient(dy, x, a, c, d, e, None),
    ]
    return dict(zip(_MAPS, actions, strict=True))


def captured(action: Callable[[], Any]) -> Callable[[], None]:
    """Capture some calls of an action in a graph; return a function that replays it."""
    action()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            action()
    return graph.replay


def measure(
    shape: tuple[int, ...], dtype: Dtype, layout: Layout, backend: str, rounds: int
) -> list[dict[str, Any]]:
    """Time every pass and a copy at a shape, in interleaved rounds."""
    x, dy = (
        torch.randn(shape, device="cuda", dtype=getattr(torch, dtype.value))
        .to(memory_format=layout.memory_format)
        for _ in range(2)
    )  # fmt: skip
    named = {name: captured(action) for name, action in calls(x, dy, backend).items()}
    take_turns(list(named.values()), 2)
    seconds = dict(zip(named, take_turns(list(named.values()), rounds), strict=True))
    size = x.numel() * x.element_size()
    return [
        {
            "shape": "x".join(map(str, shape)),
            "what": name,
            "microseconds": round(1e6 * sorted(own)[len(own) // 2] / _CALLS, 2),
            "terabytes_per_second": round(
                _MAPS[name] * size * _CALLS / sorted(own)[len(own) // 2] / 1e12, 3
            ),
            **ratios(own, [s * _MAPS[name] / _MAPS["copy"] for s in seconds["copy"]]),
        }
        for name, own in seconds.items()
    ]


def main(
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the feature map.")] = Dtype.BFLOAT16,
    layout: Annotated[Layout, typer.Option(help="Its memory format.")] = Layout.CHANNELS_LAST,
    shapes: Annotated[
        str, typer.Option(help="Such as 256x256x28x28,256x512x14x14; default: ResNet-50's.")
    ] = "",
    backend: Annotated[str, typer.Option(help="Backend to measure.")] = "triton",
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 15,
    results: Annotated[Path, typer.Option(help="CSV file to append to.")] = RESULTS / "passes.csv",
) -> None:
    """Time each pass by itself, relative to a copy of as many bytes (1 is the ideal)."""
    torch.manual_seed(0)
    settings = surroundings("cuda") | {
        "dtype": dtype.value, "layout": layout.value, "backend": backend, "rounds": rounds,
    }  # fmt: skip
    rows = []
    for text in (shapes or SHAPES["cuda"]).split(","):
        rows += measure(tuple(map(int, text.split("x"))), dtype, layout, backend, rounds)
    line = "{shape}|{what}|{microseconds:.1f}|{terabytes_per_second:.2f}|" + RATIO
    columns = ("shape", "pass", "microseconds", "TB/s", "time / copy of as many bytes (quartiles)")
    title = "{dtype}, {layout}, {backend}, {device}".format(**settings)
    show(title, columns, [line.format(**row).split("|") for row in rows])
    append(results, [settings | row for row in rows])


if __name__ == "__main__":
    typer.run(main)
