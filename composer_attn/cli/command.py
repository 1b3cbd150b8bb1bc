"""The ``composer-attn`` command itself: what all verbs share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every verb, too
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
            "--version", callback=_print_version, is_eager=True, help="Print the version, and stop."
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
    from composer_attn.errors import ArgumentError
    from composer_attn.runs.components.project_imports import import_modules

    try:
        import_modules(imported)
    except ArgumentError as error:
        print(f"composer-attn: {error}", file=sys.stderr)
        raise typer.Exit(REFUSED) from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error of ours into one line on standard error, and an exit code."""
    from composer_attn.errors import ComposerAttnError, ExportError, SaveError

    try:
        yield
    except ComposerAttnError as error:
        print(f"composer-attn: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        codes = {SaveError: UNWRITTEN, ExportError: INVALID}
        raise typer.Exit(codes.get(type(error), REFUSED)) from error
