"""What the functions share: the types of their arguments, and the warning."""

import warnings

from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional.keywords import Filter, Patterns
from composer_attn.surgery import Example, Optimizers, SurgeryPlan
from composer_attn.surgery.points import ATTENDED_ALREADY

__all__ = ["Example", "Filter", "Optimizers", "Patterns", "attends_nothing", "warn_if_nothing"]


def attends_nothing(plan: SurgeryPlan) -> bool:
    """Say whether nothing was chosen, and nothing is as asked already."""
    return not plan.chosen and all(site.reason != ATTENDED_ALREADY for site in plan.sites)


def warn_if_nothing(plan: SurgeryPlan) -> SurgeryPlan:
    """Warn where nothing was chosen, unless everything already is as asked."""
    if attends_nothing(plan):
        warnings.warn(f"nothing was attended\n{plan}", NothingAttendedWarning, stacklevel=4)
    return plan
