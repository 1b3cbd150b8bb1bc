"""The commands that train and compare: validate, plan, train, study, report."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from composer_attn.cli.attention_options import Algorithm, takes_attention
from composer_attn.cli.command import INVALID, app, imported, refusing, resumable

# Readability is not checked by typer: an unreadable file is reported like any other mistake.
_File = Annotated[Path, typer.Argument(readable=False, help="The run's YAML file.")]
_Files = Annotated[list[Path], typer.Argument(readable=False, help="YAML files of runs.")]


@app.command()
def train(
    config: _File,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value, like max_duration=2ep or optimizer.lr=0.1"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, print a summary, and exit.")
    ] = False,
) -> None:
    """Train, evaluate and summarize the run that a YAML file describes."""
    from composer.utils import dist

    from composer_attn.errors import RunStoppedError
    from composer_attn.runs.components.config_check import load_checked
    from composer_attn.runs.training.dry_run import rehearse
    from composer_attn.runs.training.train import train as run

    summary = None
    with refusing(one_line=False):
        checked = load_checked(config, overrides)
        try:
            if dry_run:
                rehearse(checked)
            else:
                summary = run(checked)
        except RunStoppedError as error:
            print(f"composer-attn: {error}\nResume with: {_again(config, overrides, error.folder)}")
            raise typer.Exit(128 + error.signal) from error
    if summary is not None and dist.get_global_rank() == 0:
        summary.show()


def _again(config: Path, overrides: list[str] | None, folder: str) -> str:
    """Return the command that resumes a run."""
    kept = [o for o in overrides or [] if o.split("=")[0] not in ("save_folder", "autoresume")]
    added = [f"save_folder={folder}", "autoresume=true"]
    imports = [word for module in imported for word in ("--import", module)]
    return shlex.join(["composer-attn", *imports, "train", str(config), *kept, *added])


@app.command()
def validate(configs: _Files) -> None:
    """Report every mistake in runs' YAML files; build only what costs nothing."""
    from composer_attn.errors import ConfigError
    from composer_attn.runs.components.config_check import load_checked

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
        raise typer.Exit(INVALID)


@app.command()
@takes_attention
def plan(
    model: Annotated[str, typer.Argument(help="A network's name, or a run's YAML file.")],
    arguments: dict[str, Any],
    algorithm: Algorithm = None,
    image: Annotated[str | None, typer.Option(help="Like 3x224x224.")] = None,
    batch: Annotated[int, typer.Option(help="Number of images.")] = 1,
    everything: Annotated[bool, typer.Option("--all", help="List sites passed over too.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row per site.")] = False,
) -> None:
    """Show where attention would go, and what each site costs on an image; change nothing.

    An option that is not given is as the algorithm's default, or as in the YAML file.
    """
    from composer_attn.errors import ArgumentError
    from composer_attn.runs.planning.network_plan import make_plan
    from composer_attn.runs.planning.plan_report import as_json, show, write_csv

    with refusing():
        if json and csv:
            raise ArgumentError("--json and --csv cannot be combined")
        planned = make_plan(model, algorithm, arguments, image, batch)
    if json:
        print(as_json(planned))
    elif csv:
        write_csv(planned)
    else:
        show(planned, everything)


@app.command()
def study(
    config: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [OVERRIDES]...",
            help="The recipe's YAML file (default: the handwritten digits), and key=value.",
        ),
    ] = None,
    variants: Annotated[
        str,
        typer.Option(
            help="Attentions to compare, and plain, without one: eca, or eca:ARGUMENT=VALUE,..., "
            "or 'NAME=eca:ARGUMENT=VALUE,...'."
        ),
    ] = "plain,squeeze_excite,eca",
    seeds: Annotated[int, typer.Option(help="How many seeds to train each variant with.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The folder of runs and report.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes per run, such as one per GPU.")] = 1,
) -> None:
    """Train variants of one recipe, or resume; show their progress live; write a report."""
    from composer_attn.runs.components.variant_specs import split_variants
    from composer_attn.runs.study.study_command import run_study

    with resumable():
        names = split_variants(variants)
        failed = run_study(config or [], names, seeds, out, ranks, imported)
    if failed:
        raise typer.Exit(INVALID)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(readable=False, help="Folders of runs, or studies.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write the report to.")] = Path("report"),
) -> None:
    """Compare runs that are on disk: a page, its plots, and the results as CSV and JSON."""
    from composer_attn.runs.report import write_report

    with refusing(one_line=False):
        print(write_report(runs, out))
