"""Detect idle attention: gates that are saturated, or that do not change."""

import warnings

from torch import Tensor

from composer_attn.callbacks.tally import Tally
from composer_attn.errors import IdleGatesWarning

# A layer is saturated if this share of its scales is.
_SATURATED = 0.99
# Smaller changes, of scales around 1, do not count.
_STILL = 1e-4


class IdleGates:
    """Warns, once for each layer, when its gates are idle for a number of consecutive steps.

    Args:
        patience: the number of steps.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self._before: dict[str, Tensor] = {}
        self._in_a_row: dict[tuple[str, str], int] = {}

    def look_at(self, layer: str, tally: Tally) -> None:
        """Record the tally of a layer on a logging step.

        Warns:
            IdleGatesWarning: it was saturated, or did not change, in the last ``patience`` steps.
        """
        figures, means = tally.figures(), tally.mean()[-1]
        saturated = figures["saturated_low"] + figures["saturated_high"]
        before = self._before.get(layer, means)
        moved = max(float((means - before).abs().max()), float(tally.deviation()[-1].max()))
        self._before[layer] = means
        self._count(
            (layer, "saturated"),
            saturated >= _SATURATED,
            f"{saturated:.0%} of the scales are saturated, and pass almost no gradient: a lower "
            "learning rate, or start='identity', may help",
        )
        self._count(
            (layer, "still"),
            moved < _STILL,
            "the scales are the same for every sample, and have not changed since the previous "
            "step: is the attention being trained?",
        )

    def _count(self, key: tuple[str, str], is_idle: bool, message: str) -> None:
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if is_idle else 0
        if self._in_a_row[key] == self.patience:
            warnings.warn(
                f"{key[0]}: for {self.patience} logging steps, {message}",
                IdleGatesWarning,
                stacklevel=2,
            )
