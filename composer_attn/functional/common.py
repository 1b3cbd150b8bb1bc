"""Shared parts of the public functions: argument types, and the warning if nothing is chosen."""

import warnings
from collections import Counter

from composer_attn.costs import Example
from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional.keywords import Filter, Patterns
from composer_attn.surgery import Optimizers, SurgeryPlan
from composer_attn.surgery.sites import ATTENDED_ALREADY

__all__ = [
    "Example",
    "Filter",
    "Optimizers",
    "Patterns",
    "attends_nothing",
    "warn_if_nothing",
    "why_nothing",
]


def attends_nothing(plan: SurgeryPlan) -> bool:
    """Return whether nothing was chosen and no site already has the requested attention."""
    return not plan.chosen and all(site.reason != ATTENDED_ALREADY for site in plan.sites)


def why_nothing(plan: SurgeryPlan) -> str:
    """Return why nothing was chosen: each reason with its count, then the plan."""
    reasons = Counter(site.reason for site in plan.sites).most_common()
    said = ", ".join(f"{reason} ({count})" for reason, count in reasons)
    return f"{said or 'there are no candidates'}\n{plan}"


def warn_if_nothing(plan: SurgeryPlan) -> SurgeryPlan:
    """Warn if nothing was chosen, unless sites already have the requested attention."""
    if attends_nothing(plan):
        message = f"nothing was attended: {why_nothing(plan)}"
        warnings.warn(message, NothingAttendedWarning, stacklevel=4)
    return plan
