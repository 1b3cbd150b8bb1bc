"""Surgery: select sites, plan, attend them in place, detach again. Requires only torch.

The public functions are in :mod:`composer_attn.functional`.
"""

from composer_attn.surgery.attend import find_attended
from composer_attn.surgery.blocks import register_block
from composer_attn.surgery.existing_attention.known import register_existing_attention
from composer_attn.surgery.optimizers import Optimizers
from composer_attn.surgery.orphans import check_no_orphans, describe_orphans
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.registration import end_guard, leave_to_guard
from composer_attn.surgery.selection import Selection, default_min_channels
from composer_attn.surgery.site_cost import NetworkCost, SiteCost
from composer_attn.surgery.validation import check_model

__all__ = [
    "NetworkCost",
    "Optimizers",
    "Recipe",
    "Selection",
    "Site",
    "SiteCost",
    "SurgeryPlan",
    "check_model",
    "check_no_orphans",
    "default_min_channels",
    "describe_orphans",
    "end_guard",
    "find_attended",
    "leave_to_guard",
    "register_block",
    "register_existing_attention",
]
