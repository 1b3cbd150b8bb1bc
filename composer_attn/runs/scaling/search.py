"""Train the candidates of a search that are not trained yet."""

import os
from collections.abc import Sequence
from pathlib import Path

from composer_attn.checks import whole_number
from composer_attn.errors import ConfigError
from composer_attn.runs.components.variants import Variant
from composer_attn.runs.config.config_errors import Mistake
from composer_attn.runs.scaling.candidates import Candidate, Plan
from composer_attn.runs.scaling.results import Results, read_results
from composer_attn.runs.study.study import train_variants


def search(
    plan: Plan, seeds: int, out: Path, ranks: int = 1, imports: Sequence[str] = ()
) -> tuple[Results, list[Variant]]:
    """Train the candidates of a plan, then larger networks along the lines of the figure.

    Each is a run of ``composer-attn train`` in its own folder within ``out``, as in a study: an
    interrupted run resumes from its last checkpoint, and one that has a summary is not run again.
    Which division of the budget the figure follows with all dimensions is known only once the
    candidates are trained.

    Args:
        plan: the candidates.
        seeds: number of seeds, counting up from the recipe's.
        out: folder of the search.
        ranks: number of processes of each run, on this machine.
        imports: modules that register attentions, which each run imports first.

    Returns:
        The results, and the runs that failed; their output is in ``train.log`` in their folders.

    Raises:
        ArgumentError, ConfigError: nothing was trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        message = "starts the processes of its runs itself: composer-attn scale --ranks N"
        raise ConfigError(Mistake("scale", message))
    first = plan.recipe.config.seed
    numbers = range(first, first + whole_number("seeds", seeds))

    def train(candidates: Sequence[Candidate]) -> list[Variant]:
        runs = [each.variant(seed, out) for seed in numbers for each in candidates]
        return train_variants(runs, out, ranks, imports, timed=False)

    failed = train(plan.trained)
    results = read_results(plan, numbers, out)
    larger = [each for line in results.lines for each in line.larger]
    failed += train(larger) if larger else []
    return read_results(plan, numbers, out), failed
