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

_MISTAKE_EXIT_CODE = 2


@app.callback()
def _main() -> None:
    """Make ``train`` a verb even while it is the only one."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The run's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, like max_duration=2ep or optimizer.lr=0.1"),
    ] = None,
) -> None:
    """Train, evaluate and summarize the run that a YAML file describes."""
    from composer.utils import dist

    from composer_attn.errors import ComposerAttnError
    from composer_attn.runs.check import load_checked
    from composer_attn.runs.train import train as run

    try:
        summary = run(load_checked(config, overrides))
    except ComposerAttnError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        raise typer.Exit(_MISTAKE_EXIT_CODE) from error
    if dist.get_global_rank() == 0:
        summary.show()
