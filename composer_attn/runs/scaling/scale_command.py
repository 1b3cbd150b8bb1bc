"""The command ``composer-attn scale``: searches how to scale a recipe, and reports the best."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from composer_attn.checks import whole_number
from composer_attn.errors import ConfigError
from composer_attn.runs.components.config_check import load_checked
from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.report import check_libraries
from composer_attn.runs.scaling.candidates import Terms, make_plan
from composer_attn.runs.scaling.dimensions import find_dimensions
from composer_attn.runs.scaling.search import search
from composer_attn.runs.scaling.sizes import read_data
from composer_attn.runs.scaling.table import BESIDE, headline, listing, noise, results_table


def run_scale(
    recipe: Path,
    overrides: Sequence[str],
    terms: Terms,
    seeds: int = 1,
    out: Path | None = None,
    ranks: int = 1,
    imports: Sequence[str] = (),
    dry_run: bool = False,
) -> list[Variant]:
    """Search how to scale a recipe: list the candidates, train them, and report the best.

    Args:
        recipe: the recipe's YAML file.
        overrides: ``key=value`` overrides.
        terms: what is requested.
        seeds: number of seeds to train each network with.
        out: folder of the search; by default one in ``runs`` named after the recipe.
        ranks: number of processes of each run.
        imports: modules that each run imports first.
        dry_run: whether to stop after listing the candidates; then nothing is written.

    Returns:
        The runs that failed.

    Raises:
        ArgumentError, ConfigError: nothing was trained.
    """
    whole_number("seeds", seeds)
    if not dry_run:
        check_libraries()
    config = load_checked(recipe, list(overrides))
    dimensions = find_dimensions(config)
    plan = make_plan(config, dimensions, read_data(config), terms)
    console = Console()
    console.print(listing(plan))
    count = seeds * plan.networks
    if any(not plan.meets(candidate) for candidate in plan.grid):
        told = f"{BESIDE} off the budget: trained, if at all, only for the picture"
        console.print(told, highlight=False)
    console.print(f"{count} networks to train, for {config.max_duration} each", highlight=False)
    if dry_run:
        return []
    out = out or Path("runs") / f"{config.run_name}_scaling"
    results, failed = search(plan, seeds, out, ranks, imports)
    from composer_attn.runs.scaling.page import write_page

    try:
        page = write_page(results, out)
    except OSError as error:
        raise ConfigError(Mistake("--out", f"cannot be written: {error}")) from error
    console.print(results_table(results))
    for variant in failed:
        console.print(f"{variant.folder} failed: see {variant.folder / 'train.log'}", style="red")
    told = f"{headline(results)} {noise(results)}\nreport: {page}"
    console.print(told, highlight=False, soft_wrap=True)
    return failed
