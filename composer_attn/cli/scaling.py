"""The command that scales networks: scale."""

from pathlib import Path
from typing import Annotated

import typer

from composer_attn.cli.command import INVALID, app, imported, resumable


@app.command()
def scale(
    config: Annotated[Path, typer.Argument(readable=False, help="The recipe's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, like max_duration=2ep or model.attention=eca"),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="The factor by which the recipe's operations may grow.")
    ] = 2.0,
    steps: Annotated[
        int, typer.Option(help="Into how many equal parts the budget is divided.")
    ] = 3,
    phi: Annotated[
        int, typer.Option(help="The largest compound coefficient of the picture's lines.")
    ] = 2,
    tolerance: Annotated[
        float, typer.Option(help="How far operations may deviate from the budget, relatively.")
    ] = 0.25,
    seeds: Annotated[int, typer.Option(help="How many seeds to train each network with.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The folder of runs and report.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes per run, such as one per GPU.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the candidates, and exit.")
    ] = False,
) -> None:
    """Search how to divide more operations over depth, width and resolution, or resume a search.

    The candidates are listed with parameters and measured operations, trained one after the other,
    and reported with the best and a picture of accuracy against operations.
    """
    from composer_attn.runs.scaling.candidates import Terms
    from composer_attn.runs.scaling.scale_command import run_scale

    terms = Terms(budget, steps, phi, tolerance)
    with resumable():
        failed = run_scale(config, overrides or [], terms, seeds, out, ranks, imported, dry_run)
    if failed:
        raise typer.Exit(INVALID)
