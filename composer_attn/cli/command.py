"""The ``composer-attn`` command itself, and what its subcommands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # inherited by every subcommand
)

imported: list[str] = []
"""The modules that ``--import`` named."""

# Exit codes.
INVALID = 1
REFUSED = 2
INTERRUPTED = 130
UNWRITTEN = 74  # EX_IOERR of sysexits.h


def _print_version(asked: bool) -> None:
    if asked:
        from composer_attn import __version__

        print(f"composer-attn {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", help="A module that registers attentions; repeatable."),
    ] = None,
) -> None:
    """Channel attention for any CNN, trained with MosaicML Composer from YAML."""
    imported[:] = imports or []
    if not imported:
        return
    with refusing(one_line=False):
        from composer_attn.runs.components.project_imports import import_modules

        import_modules(imported)


@contextmanager
def refusing(one_line: bool = True) -> Iterator[None]:
    """Print an error of this package to standard error, and exit with its code.

    Args:
        one_line: whether to join several errors on one line, rather than one line each.
    """
    from composer_attn.errors import ComposerAttnError, ExportError, SaveError

    try:
        yield
    except ComposerAttnError as error:
        text = "; ".join(str(error).splitlines()) if one_line else str(error)
        print(f"composer-attn: {text}", file=sys.stderr)
        codes = {SaveError: UNWRITTEN, ExportError: INVALID}
        raise typer.Exit(codes.get(type(error), REFUSED)) from error


@contextmanager
def resumable() -> Iterator[None]:
    """As :func:`refusing`, for commands that train several runs: Ctrl-C prints how to continue."""
    try:
        with refusing(one_line=False):
            yield
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
