"""Surgery: select sites, plan, attend them in place, detach again. Needs torch alone.

Public functions live in :mod:`composer_attn.functional`.
"""

from composer_attn.surgery.blocks import register_block
from composer_attn.surgery.cost import NetworkCost, SiteCost
from composer_attn.surgery.example import Example
from composer_attn.surgery.existing_attention import register_existing_attention
from composer_attn.surgery.fuse import backends_of, fuse_anew, take_apart
from composer_attn.surgery.fusion_plan import FusedSite, FusionPlan
from composer_attn.surgery.operate import operate, plan_surgery
from composer_attn.surgery.optimizers import Optimizers
from composer_attn.surgery.orphans import check_no_orphans, describe_orphans
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.refusals import check_model
from composer_attn.surgery.registration import end_guard, leave_to_guard
from composer_attn.surgery.select import Selection, default_min_channels
from composer_attn.surgery.undo import detach_all, find_attended, remove_all

__all__ = [
    "Example",
    "FusedSite",
    "FusionPlan",
    "NetworkCost",
    "Optimizers",
    "Recipe",
    "Selection",
    "Site",
    "SiteCost",
    "SurgeryPlan",
    "backends_of",
    "check_model",
    "check_no_orphans",
    "default_min_channels",
    "describe_orphans",
    "detach_all",
    "end_guard",
    "find_attended",
    "fuse_anew",
    "leave_to_guard",
    "operate",
    "plan_surgery",
    "register_block",
    "register_existing_attention",
    "remove_all",
    "take_apart",
]
