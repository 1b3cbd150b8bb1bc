"""A search in words and in rows of text, for the terminal and for the page."""

from collections.abc import Sequence

from rich.table import Table

from composer_attn.runs.scaling.candidates import Candidate, Plan
from composer_attn.runs.scaling.results import Result, Results

COLUMNS = (
    "network", "phi", "accuracy", "multiple", "operations", "parameters", "image", "alpha", "beta",
    "gamma",
)  # fmt: skip

# Marks candidates whose operations are not within the tolerance of the budget.
BESIDE = "*"


def listing(plan: Plan) -> Table:
    """Return the table of the candidates before training, those beside the budget marked."""
    kept = [COLUMNS.index(name) for name in ("network", *COLUMNS[-3:], *COLUMNS[3:7])]
    table = _table("candidates", [COLUMNS[i] for i in kept])
    for candidate in (plan.recipe, *plan.grid):
        beside = candidate.phi == 1 and not plan.meets(candidate)
        row = _cells(plan, candidate, "")
        table.add_row(*(row[i] for i in kept), style="dim" if beside else None)
    return table


def results_table(results: Results) -> Table:
    """Return the table of all networks after training."""
    kept = range(6)  # image sizes and factors are in the listing
    table = _table("results", [COLUMNS[i] for i in kept])
    for row in cells(results):
        table.add_row(*(row[i] for i in kept))
    return table


def cells(results: Results) -> list[list[str]]:
    """Return a row of text for each network: the recipe, the grid, then the larger ones."""
    trained = [results.recipe, *results.grid]
    known = {result.candidate.name for result in trained}
    for line in results.lines:
        trained += [p for p in line.points if p.candidate.name not in known]
    passed = [c for c in results.plan.grid if c.name not in known]
    rows = [_cells(results.plan, r.candidate, _accuracy(results, r)) for r in trained]
    return rows + [_cells(results.plan, c, "not trained") for c in passed]


def headline(results: Results) -> str:
    """Describe which division of the budget was best."""
    best = results.best
    if best is None:
        return "No candidate has finished: there is no best one."
    factors = dict(zip(("alpha", "beta", "gamma"), best.candidate.base, strict=True))
    told = ", ".join(f"{name} {factor:.3g}" for name, factor in factors.items())
    return (
        f"The most accurate way to spend {results.plan.terms.budget:g} times the operations: "
        f"{told} ({best.accuracy:.2%})."
    )


def noise(results: Results) -> str:
    """Describe which candidates cannot be distinguished from the best one."""
    best, rivals = results.best, results.rivals
    if best is None:
        return ""
    others = [
        r for r in results.grid
        if r is not best and r.accuracies and results.plan.meets(r.candidate)
    ]  # fmt: skip
    if not rivals:
        return "Every other candidate is less accurate by more than the noise." if others else ""
    which = "any" if len(rivals) == len(others) else f"{len(rivals)}"
    images = f"{best.evaluated:,} images" if best.evaluated else "so few runs"
    seeds = f"{results.seeds} seed{'' if results.seeds == 1 else 's'}"
    return (
        f"It is not distinguishable from {which} of the {len(others)} other candidates on {images} "
        f"with {seeds}."
    )


def _table(title: str, columns: Sequence[str]) -> Table:
    # Plain, so that it fits into 80 columns.
    table = Table(columns[0], title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(plan: Plan, candidate: Candidate, accuracy: str) -> list[str]:
    size = candidate.size
    beside = candidate.phi == 1 and not plan.meets(candidate)
    return [
        _scales(plan, candidate),
        str(candidate.phi),
        accuracy,
        f"{candidate.growth:.2f}\N{MULTIPLICATION SIGN}{BESIDE if beside else ''}",
        f"{size.macs:,}",
        f"{size.parameters:,}",
        str(size.image),
        *(f"{factor:.3f}" for factor in candidate.base),
    ]


def _scales(plan: Plan, candidate: Candidate) -> str:
    if not candidate.scales:
        return "the recipe"
    if plan.is_compound(candidate) and len(candidate.scales) > 2:
        return "all together"
    return ", ".join(candidate.scales)


def _accuracy(results: Results, result: Result) -> str:
    if result.accuracy is None:
        return "failed"
    best = results.best
    mark = " (best)" if best and best.candidate.name == result.candidate.name else ""
    return f"{result.accuracy:.2%} \N{PLUS-MINUS SIGN} {100 * result.error:.2f}{mark}"
