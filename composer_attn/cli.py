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
