"""What does attention add to a training step? All networks in one process, steps interleaved.

python -m benchmarks.train_step --layout channels_last
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import nn

from benchmarks import common
from benchmarks.common import Device, Layout, Precision
from benchmarks.variants import Variant, chosen


@dataclass
class Trained:
    """A network in training: a step is forward, loss, backward, and SGD with momentum."""

    variant: Variant
    model: nn.Module
    forward: Callable[[], torch.Tensor]
    step: Callable[[], None]
    first_seconds: float = 0


def prepare(
    variant: Variant,
    model: str,
    backend: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    layout: Layout,
    precision: Precision,
) -> Trained:
    """Build a network and its optimizer on the device of the images."""
    torch.manual_seed(0)
    network = variant.make(model, backend).to(images.device, memory_format=layout.memory_format)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    called = torch.compile(network) if variant.compiled else network

    def forward() -> torch.Tensor:
        with precision.autocast(images.device.type):
            return F.cross_entropy(called(images), labels)

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Trained(variant, network, forward, step)


def measure(trained: list[Trained], steps: int, warmups: int, device: str) -> list[dict[str, Any]]:
    """Compare each network with the first, after a separately timed first step and warm-up."""
    memory = []
    trained = [each for each in trained if _first_step(each)]
    for each in trained:
        each.step()
        memory.append(
            {
                "saved_bytes": common.saved_bytes(each.model, each.forward),
                "peak_bytes": common.peak_bytes(each.step, device),
            }
        )
    actions = [each.step for each in trained]
    common.take_turns(actions, warmups)
    seconds = common.take_turns(actions, steps)
    return [
        {
            "variant": each.variant.name,
            "step_ms": round(1e3 * statistics.median(own), 2),
            **common.ratios(own, seconds[0]),
            **kept,
            "saved_ratio": round(kept["saved_bytes"] / memory[0]["saved_bytes"], 3),
            "compile_s": round(max(0.0, each.first_seconds - statistics.median(own)), 1),
        }
        for each, own, kept in zip(trained, seconds, memory, strict=True)
    ]


def _first_step(each: Trained) -> bool:
    """Take the first step; print and leave out networks that the compiler cannot handle."""
    try:
        each.first_seconds = common.timed(each.step)
    except Exception as error:
        if not each.variant.compiled:
            raise
        print(f"{each.variant.name} is left out: {type(error).__name__}: {str(error)[:300]}")
        return False
    return True


def _row(found: dict[str, Any]) -> list[str]:
    return [
        found["variant"],
        f"{found['step_ms']:,.1f}",
        common.RATIO.format(**found),
        f"{common.mebibytes(found['saved_bytes'])} ({found['saved_ratio'] - 1:+.1%})",
        common.mebibytes(found["peak_bytes"]),
        f"{found['compile_s']:.1f}",
    ]


def main(
    device: Annotated[Device, typer.Option(help="Device to train on.")] = Device.CPU,
    model: Annotated[str, typer.Option(help="Name of a torchvision and timm ResNet.")] = "resnet50",
    batch: Annotated[int, typer.Option(min=2, help="Images per step.")] = 16,
    image: Annotated[int, typer.Option(min=32, help="Height and width.")] = 128,
    precision: Annotated[Precision, typer.Option(help="Autocast or not.")] = Precision.FP32,
    layout: Annotated[Layout, typer.Option(help="Memory format.")] = Layout.NCHW,
    variants: Annotated[
        str, typer.Option(help="Names separated by commas; or eager, compiled, all.")
    ] = "eager",
    backend: Annotated[str, typer.Option(help="Backend of the fused networks.")] = "auto",
    steps: Annotated[int, typer.Option(min=2, help="Timed steps of each network.")] = 15,
    warmups: Annotated[int, typer.Option(min=0, help="Warm-up steps after the first.")] = 2,
    results: Annotated[Path, typer.Option(help="The CSV file to append to.")] = (
        common.RESULTS / "train_step.csv"
    ),
) -> None:
    """Compare training steps of attended networks with those of the plain one, in one run.

    The compile time is how much longer the first step takes than the others. The cache is empty at
    the start of the run, but shared by its networks.
    """
    settings = common.surroundings(device.value) | {
        "model": model, "batch": batch, "image": image, "precision": precision.value,
        "layout": layout.value, "backend": backend, "steps": steps,
    }  # fmt: skip
    images = torch.randn(batch, 3, image, image, device=device.value)
    images = images.contiguous(memory_format=layout.memory_format)
    labels = torch.randint(1000, (batch,), device=device.value)
    with common.empty_compile_cache():
        options = (model, backend, images, labels, layout, precision)
        trained = [prepare(variant, *options) for variant in chosen(variants)]
        found = measure(trained, steps, warmups, device.value)
    title = "{model}, batch {batch} at {image}x{image}, {precision}, {layout}, {device}, {threads} "
    columns = ("network", "step, ms", "ratio to plain (quartiles)", "kept for backward, MiB",
               "peak, MiB", "compile, s")  # fmt: skip
    common.show((title + "threads").format(**settings), columns, [_row(each) for each in found])
    common.append(results, [settings | each for each in found])


if __name__ == "__main__":
    typer.run(main)
