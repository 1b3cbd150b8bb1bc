"""The ``composer-attn`` command. What a verb needs is imported when the verb runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Channel attention for any CNN, trained with MosaicML Composer from YAML.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Not checked by typer: what cannot be read is a mistake like any other.
_File = Annotated[Path, typer.Argument(readable=False, help="The run's YAML file.")]
_Files = Annotated[list[Path], typer.Argument(readable=False, help="YAML files of runs.")]

_INVALID = 1
_REFUSED = 2
_INTERRUPTED = 130


@app.command()
def train(
    config: _File,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, like max_duration=2ep or optimizer.lr=0.1"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, say what it is, and stop.")
    ] = False,
) -> None:
    """Train, evaluate and summarize the run that a YAML file describes."""
    from composer.utils import dist

    from composer_attn.errors import ComposerAttnError
    from composer_attn.runs.check import load_checked
    from composer_attn.runs.rehearse import rehearse
    from composer_attn.runs.train import train as run

    try:
        checked = load_checked(config, overrides)
        summary = rehearse(checked) if dry_run else run(checked)
    except ComposerAttnError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        raise typer.Exit(_REFUSED) from error
    if summary is not None and dist.get_global_rank() == 0:
        summary.show()


@app.command()
def validate(configs: _Files) -> None:
    """Report every mistake in runs' YAML files; build only what costs nothing."""
    from composer_attn.errors import ConfigError
    from composer_attn.runs.check import load_checked

    invalid = 0
    for config in configs:
        try:
            load_checked(config)
        except ConfigError as error:
            invalid += 1
            print(error, file=sys.stderr)
        else:
            print(f"{config}: valid")
    if invalid:
        raise typer.Exit(_INVALID)


@app.command()
def study(
    config: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [OVERRIDES]...",
            help="The recipe's YAML file (the handwritten digits without one), and key=value.",
        ),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Attentions to compare, by name, and plain, without one.")
    ] = "plain,squeeze_excite,eca",
    seeds: Annotated[int, typer.Option(help="How many seeds to train each variant with.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The folder of runs and report.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes of each run, like GPUs.")] = 1,
) -> None:
    """Train variants of one recipe, or go on with it; show live how they do; write a report."""
    from composer_attn.errors import ComposerAttnError
    from composer_attn.runs.study_command import run_study

    try:
        failed = run_study(config or [], variants.split(","), seeds, out, ranks)
    except ComposerAttnError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        raise typer.Exit(_REFUSED) from error
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this stopped", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None
    if failed:
        raise typer.Exit(_INVALID)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(readable=False, help="Folders of runs, or studies.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the report to.")] = Path("report"),
) -> None:
    """Compare runs that are on disk: a page, its plots, and the results as CSV and JSON."""
    from composer_attn.errors import ComposerAttnError
    from composer_attn.runs.report import write_report

    try:
        print(write_report(runs, out))
    except ComposerAttnError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        raise typer.Exit(_REFUSED) from error
