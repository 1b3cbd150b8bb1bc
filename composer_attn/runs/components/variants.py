"""The variants of a recipe: the same run with different attentions, or none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer_attn.attention import attention_names
from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError, ConfigError
from composer_attn.runs.components.attention_algorithms import COMPOSERS
from composer_attn.runs.components.config_check import find_mistakes, try_components
from composer_attn.runs.components.registry import is_attention
from composer_attn.runs.config.config_errors import unknown
from composer_attn.runs.config.schema import RunConfig

PLAIN = "plain"
_MONITOR = "excitation_monitor"


@dataclass(frozen=True)
class Variant:
    """One run of a study.

    Attributes:
        name: name of the variant: ``plain``, or that of its attention.
        seed: seed of the run.
        config: config of the run.
    """

    name: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Folder of the run's checkpoints, history and summary."""
        return Path(self.config.save_folder)


def attentions() -> list[str]:
    """List the attentions that a config can name: the registered ones and Composer's own."""
    return [*attention_names(), COMPOSERS]


def make_variants(config: RunConfig, names: Sequence[str], seeds: int, out: Path) -> list[Variant]:
    """Return the runs of a study, all variants of a seed before the next seed.

    A variant is the recipe with its attention replaced by the named one, with the arguments that
    the recipe has for it, or else its defaults. Runs with the same seed differ in nothing else:
    initial parameters, order of samples and augmentation are the same.

    Args:
        config: the recipe.
        names: names of the variants.
        seeds: number of seeds, counting up from the recipe's.
        out: folder of the study, in which each run has its own.

    Raises:
        ArgumentError: a variant is unknown or named twice, or there is none.
        ConfigError: a variant's config has mistakes.
    """
    known = [PLAIN, *attentions()]
    for name in names:
        if name not in known:
            raise ArgumentError(unknown("variant", name, known))
    if len(set(names)) < len(names) or not names:
        raise ArgumentError(f"variants must be names, each once; got {','.join(names)!r}")
    count = whole_number("seeds", seeds)
    variants = [
        Variant(name, seed, _variant(config, name, seed, out / f"{name}-seed{seed}"))
        for seed in range(config.seed, config.seed + count)
        for name in names
    ]
    for variant in variants:
        mistakes = find_mistakes(variant.config)
        mistakes += try_components(variant.config, mistakes)
        if mistakes:
            raise ConfigError(*mistakes)
    return variants


def attention_of(algorithms: dict[str, Any]) -> dict[str, Any]:
    """Return the attentions among a config's algorithms, with their arguments."""
    return {name: args or {} for name, args in algorithms.items() if is_attention(name)}


def _variant(config: RunConfig, name: str, seed: int, folder: Path) -> RunConfig:
    others = {n: a for n, a in config.algorithms.items() if not is_attention(n)}
    own = {} if name == PLAIN else {name: config.algorithms.get(name) or {}}
    callbacks = dict(config.callbacks)
    if name not in (PLAIN, COMPOSERS):
        callbacks.setdefault(_MONITOR, {})
    else:
        callbacks.pop(_MONITOR, None)
    return replace(
        config,
        run_name=f"{config.run_name.removesuffix('_plain')}_{name}_seed{seed}",
        seed=seed,
        algorithms=others | own,
        callbacks=callbacks,
        save_folder=str(folder),
        autoresume=True,
    )
