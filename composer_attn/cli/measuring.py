"""The command that measures: benchmark."""

from pathlib import Path
from typing import Annotated, Any

import typer

from composer_attn.cli.attention_options import Algorithm, takes_attention
from composer_attn.cli.command import app, refusing


@app.command()
@takes_attention
def benchmark(
    model: Annotated[
        str,
        typer.Argument(help="A network's name, a run's YAML file, or the folder of a trained run."),
    ],
    arguments: dict[str, Any],
    algorithm: Algorithm = None,
    image: Annotated[str | None, typer.Option(help="Like 224 or 3x224x224.")] = None,
    batch: Annotated[str, typer.Option(help="Numbers of images per call.")] = "1,8,64",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[int, typer.Option(help="Timed calls of each variant.")] = 20,
    variants: Annotated[
        str,
        typer.Option(
            help="What to compare with plain; also plain_folded, plain_compiled, plain_onnxruntime."
        ),
    ] = "attended,fused,folded,compiled,onnxruntime",
    output: Annotated[Path, typer.Option(help="The folder for the CSV file and the picture.")] = (
        Path("benchmark")
    ),
) -> None:
    """Measure a network without and with attention on this machine: latency and throughput.

    All variants are measured in the same interleaved rounds. Those that cannot run here are listed
    with the reason.
    """
    with refusing():
        from composer_attn.runs.benchmark.command import parse_batches, run_benchmark

        names = [name.strip() for name in variants.split(",")]
        sizes = parse_batches(batch)
        run_benchmark(model, algorithm, arguments, image, sizes, device, rounds, names, output)
    print(f"written to {output}")
