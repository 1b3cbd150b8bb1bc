"""The command ``composer-attn study``: trains the variants of a recipe and writes a report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.report import check_libraries, write_report
from composer_attn.runs.study.study import digits_recipe, study


def run_study(
    arguments: Sequence[str],
    names: Sequence[str],
    seeds: int,
    out: Path | None,
    ranks: int,
    imports: Sequence[str] = (),
) -> list[Variant]:
    """Train the variants that are not trained yet, and write a report on all of them.

    Args:
        arguments: a recipe file, if any, and ``key=value`` overrides.
        names: names of the variants.
        seeds: number of seeds.
        out: folder of the study; by default one in ``runs`` named after the recipe.
        ranks: number of processes of each run.
        imports: modules that each run imports first.

    Returns:
        The variants that failed.

    Raises:
        ArgumentError, ConfigError: nothing was trained.
    """
    files = [argument for argument in arguments if "=" not in argument]
    if len(files) > 1:
        raise ConfigError(Mistake("study", f"takes one recipe; got {', '.join(files)}"))
    check_libraries()
    recipe = files[0] if files else digits_recipe()
    config = load_checked(recipe, [a for a in arguments if "=" in a])
    out = out or Path("runs") / f"{config.run_name.removesuffix('_plain')}_study"
    failed = study(config, names, seeds, out, ranks, imports)
    folders = [out]
    page = write_report(folders, out)
    console = Console()
    _print_results(console, folders)
    for variant in failed:
        console.print(f"{variant.folder} failed: see {variant.folder / 'train.log'}", style="red")
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return failed


def _print_results(console: Console, folders: Sequence[Path]) -> None:
    # Not before check_libraries: they need those that draw the page.
    from composer_attn.runs.report.compare import compare
    from composer_attn.runs.report.headline import headline
    from composer_attn.runs.report.records import find_records
    from composer_attn.runs.report.results import variant_rows

    comparison = compare(find_records(folders))
    table = Table("variant", title="results", title_justify="left")
    headline_label = comparison.headline.label
    for name in (headline_label, "against plain", "parameters", "images/s", "speed", "memory"):
        table.add_column(name, justify="right")
    for row in variant_rows(comparison):
        table.add_row(
            row["variant"],
            _show(row[comparison.metric], "{:.2%}" if comparison.headline.percent else "{:.4f}"),
            _show(row["difference_to_plain"], "{:+.4f}"),
            _show(row["parameters"], "{:,.0f}"),
            _show(row["images_per_second"], "{:,.0f}"),
            _show(row["speed_relative_to_plain"], "{:.2f}x"),
            _show(row["peak_memory"] and row["peak_memory"] / 2**20, "{:,.0f} MiB"),
        )
    console.print(table)
    if text := headline(comparison):
        console.print(text, highlight=False)


def _show(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
