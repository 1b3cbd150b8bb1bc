"""A page of a search: its figure, the table of networks, and what the best one is."""

from datetime import datetime, timezone
from pathlib import Path

from composer_attn import __version__
from composer_attn.runs.report.templates import templates_of
from composer_attn.runs.scaling.picture import NAME, draw
from composer_attn.runs.scaling.results import Results, write_results
from composer_attn.runs.scaling.table import COLUMNS, cells, headline, noise

_CAPTION = (
    "Each line scales the recipe one way, to multiples of its operations; bars are one standard "
    "error. Operations are measured: as depth and channels are rounded, they are not exactly on "
    "the budget."
)
_COLUMNS = (
    "alpha, beta and gamma are the factors of depth, width and resolution for a compound "
    "coefficient of 1; operations are multiply-accumulates of one image, and their multiple of the "
    "recipe's, * if it is off the budget. Accuracy: \N{PLUS-MINUS SIGN} one standard error."
)


def write_page(results: Results, out: Path) -> Path:
    """Write ``scaling.html``, ``plots/``, ``results.csv``, ``results.json`` and ``best.yaml``.

    Returns:
        The path of the page.
    """
    write_results(results, out)
    svg = draw(results, out / "plots")[0] if results.recipe.accuracies or results.best else ""
    page = out / "scaling.html"
    page.write_text(_render(results, svg, out), encoding="utf-8")
    return page


def _render(results: Results, svg: str, out: Path) -> str:
    environment = templates_of("composer_attn.runs")
    config, terms = results.plan.recipe.config, results.plan.terms
    names = results.plan.dimensions.names
    return environment.get_template("scaling/page.html.j2").render(
        title=f"{config.model['name']} on {config.train_dataset['name']}: which way to grow?",
        lead=f"{headline(results)} {noise(results)}".strip(),
        svg=svg,
        name=NAME,
        caption=_CAPTION,
        columns=COLUMNS[1:],
        columns_explained=_COLUMNS,
        rows=cells(results),
        best=results.best is not None,
        train=f"composer-attn train {out / 'best.yaml'}",
        how=(
            f"A budget of {terms.budget:g} times the operations of the recipe, in {terms.steps} "
            f"equal parts over {', '.join(names)}; each network trained from scratch for "
            f"{config.max_duration}, with {_count(results.seeds, 'seed')}, by the recipe as it is. "
            "After Tan and Le, EfficientNet (2019), section 4, step 1."
        ),
        version=__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
