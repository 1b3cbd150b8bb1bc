"""Surgery: select sites, plan, attend them in place, detach again. Needs torch alone.

Public functions live in :mod:`composer_attn.functional`.
"""

from composer_attn.surgery.blocks import register_block
from composer_attn.surgery.cost import NetworkCost, SiteCost
from composer_attn.surgery.example import Example
from composer_attn.surgery.operate import (
    detach_all,
    find_attended,
    operate,
    plan_surgery,
    remove_all,
)
from composer_attn.surgery.optimizers import Optimizers
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.select import Selection, default_min_channels

__all__ = [
    "Example",
    "NetworkCost",
    "Optimizers",
    "Recipe",
    "Selection",
    "Site",
    "SiteCost",
    "SurgeryPlan",
    "default_min_channels",
    "detach_all",
    "find_attended",
    "operate",
    "plan_surgery",
    "register_block",
    "remove_all",
]
