"""What does attention cost at inference? Latency of all networks in one process, interleaved.

python -m benchmarks.inference --batch 1
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import common
from benchmarks.common import Device, Layout, Precision
from benchmarks.variants import Variant, chosen


def prepare(
    variant: Variant,
    model: str,
    backend: str,
    images: torch.Tensor,
    layout: Layout,
    precision: Precision,
) -> Callable[[], None]:
    """Build a network in evaluation mode; return a function that runs it once without gradients."""
    torch.manual_seed(0)
    network = variant.make(model, backend).to(images.device, memory_format=layout.memory_format)
    called = torch.compile(network.eval()) if variant.compiled else network.eval()

    def run() -> None:
        with torch.no_grad(), precision.autocast(images.device.type):
            called(images)

    return run


def measure(
    names: list[str],
    runs: list[Callable[[], None]],
    rounds: int,
    warmups: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Compare each network with the first."""
    first = [common.timed(run) for run in runs]
    common.take_turns(runs, warmups)
    seconds = common.take_turns(runs, rounds, clock)
    return [
        {
            "variant": name,
            "latency_ms": round(1e3 * statistics.median(own), 3),
            **common.ratios(own, seconds[0]),
            "compile_s": round(max(0.0, began - statistics.median(own)), 1),
        }
        for name, began, own in zip(names, first, seconds, strict=True)
    ]


def _row(found: dict[str, Any]) -> list[str]:
    latency = f"{found['latency_ms']:,.2f}"
    return [found["variant"], latency, common.RATIO.format(**found), f"{found['compile_s']:.1f}"]


def main(
    device: Annotated[Device, typer.Option(help="Device to run on.")] = Device.CPU,
    model: Annotated[str, typer.Option(help="Of torchvision, or timm/NAME.")] = "resnet50",
    batch: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    image: Annotated[int, typer.Option(min=32, help="Height and width.")] = 224,
    precision: Annotated[Precision, typer.Option(help="Autocast or not.")] = Precision.FP32,
    layout: Annotated[Layout, typer.Option(help="Memory format.")] = Layout.NCHW,
    variants: Annotated[
        str, typer.Option(help="Names separated by commas; or eager, compiled, with_own.")
    ] = "eager",
    baseline: Annotated[str, typer.Option(help="The variant that ratios are to.")] = "plain",
    backend: Annotated[str, typer.Option(help="Backend of the fused networks.")] = "auto",
    rounds: Annotated[int, typer.Option(min=2, help="Timed calls of each network.")] = 50,
    warmups: Annotated[int, typer.Option(min=0, help="Warm-up calls after the first.")] = 5,
    processor_time: Annotated[
        bool,
        typer.Option(
            "--processor-time",
            help="Measure the time of the calling thread on a processor, for a machine that does "
            "other things as well; with OMP_WAIT_POLICY=passive.",
        ),
    ] = False,
    results: Annotated[Path, typer.Option(help="The CSV file to append to.")] = (
        common.RESULTS / "inference.csv"
    ),
) -> None:
    """Compare the latency of networks with that of the baseline, in one run."""
    settings = common.surroundings(device.value) | {
        "model": model, "batch": batch, "image": image, "precision": precision.value,
        "layout": layout.value, "backend": backend, "rounds": rounds,
    }  # fmt: skip
    images = torch.randn(batch, 3, image, image, device=device.value)
    images = images.contiguous(memory_format=layout.memory_format)
    wanted = chosen(variants, baseline)
    with common.empty_compile_cache():
        runs = [prepare(v, model, backend, images, layout, precision) for v in wanted]
        clock = time.thread_time if processor_time else time.perf_counter
        found = measure([variant.name for variant in wanted], runs, rounds, warmups, clock)
    if processor_time:
        results = results.with_stem(f"{results.stem}_processor_time")
    title = "{model}, batch {batch} at {image}x{image}, {precision}, {layout}, {device}, {threads} "
    columns = ("network", "latency, ms", f"ratio to {baseline} (quartiles)", "compile, s")
    common.show((title + "threads").format(**settings), columns, [_row(each) for each in found])
    common.append(results, [settings | each for each in found])


if __name__ == "__main__":
    typer.run(main)
