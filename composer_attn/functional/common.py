"""What the functions share: the types of their arguments, and the warning."""

import warnings
from collections.abc import Callable, Iterable

from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.surgery import Example, Optimizers, SurgeryPlan
from composer_attn.surgery.points import ATTENDED_ALREADY

__all__ = ["Example", "Filter", "Optimizers", "Patterns", "attends_nothing", "warn_if_nothing"]

Patterns = str | Iterable[str] | None
Filter = Callable[[str, nn.Module], bool] | None


def attends_nothing(plan: SurgeryPlan) -> bool:
    """Say whether nothing was chosen, and nothing is as asked already."""
    return not plan.chosen and all(site.reason != ATTENDED_ALREADY for site in plan.sites)


def warn_if_nothing(plan: SurgeryPlan) -> SurgeryPlan:
    """Warn where nothing was chosen, unless everything already is as asked."""
    if attends_nothing(plan):
        warnings.warn(f"nothing was attended\n{plan}", NothingAttendedWarning, stacklevel=3)
    return plan
