"""The variants of a recipe: the same run with different attentions, or none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer_attn.checks import whole_number
from composer_attn.errors import ConfigError
from composer_attn.runs.components.attention_algorithms import COMPOSERS
from composer_attn.runs.components.config_check import find_mistakes, try_components
from composer_attn.runs.components.registry import is_attention
from composer_attn.runs.components.variant_specs import (
    PLAIN,
    VariantSpec,
    attentions,
    parse_variants,
)
from composer_attn.runs.config.schema import RunConfig

__all__ = ["PLAIN", "Variant", "attention_of", "attentions", "make_variants"]

_MONITOR = "excitation_monitor"


@dataclass(frozen=True)
class Variant:
    """One run of a study.

    Attributes:
        name: name of the variant: the given one, or ``plain``, or that of its attention.
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


def make_variants(config: RunConfig, names: Sequence[str], seeds: int, out: Path) -> list[Variant]:
    """Return the runs of a study, all variants of a seed before the next seed.

    A variant is the recipe with its attention replaced by the named one, with the arguments that
    the recipe has for it, or else its defaults; arguments of the variant are laid over these. Runs
    with the same seed differ in nothing else: initial parameters, order of samples and augmentation
    are the same.

    Args:
        config: the recipe.
        names: the variants, as :func:`parse_variants` reads them.
        seeds: number of seeds, counting up from the recipe's.
        out: folder of the study, in which each run has its own.

    Raises:
        ArgumentError: a variant is unknown or named twice, or there is none.
        ConfigError: a variant's config has mistakes.
    """
    specs = parse_variants(names)
    count = whole_number("seeds", seeds)
    variants = [
        Variant(spec.name, seed, _variant(config, spec, seed, out / f"{spec.slug}-seed{seed}"))
        for seed in range(config.seed, config.seed + count)
        for spec in specs
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


def _variant(config: RunConfig, spec: VariantSpec, seed: int, folder: Path) -> RunConfig:
    others = {n: a for n, a in config.algorithms.items() if not is_attention(n)}
    name = spec.attention
    own = {} if name == PLAIN else {name: (config.algorithms.get(name) or {}) | spec.arguments}
    callbacks = dict(config.callbacks)
    if name not in (PLAIN, COMPOSERS):
        callbacks.setdefault(_MONITOR, {})
    else:
        callbacks.pop(_MONITOR, None)
    return replace(
        config,
        run_name=f"{config.run_name.removesuffix('_plain')}_{spec.slug}_seed{seed}",
        variant=spec.given_name,
        seed=seed,
        algorithms=others | own,
        callbacks=callbacks,
        save_folder=str(folder),
        autoresume=True,
    )
