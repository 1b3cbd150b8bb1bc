"""Surgery: select sites, plan, attend them in place, detach again. Needs torch alone.

Public functions live in :mod:`composer_attn.functional`.
"""

from composer_attn.surgery.blocks import register_block
from composer_attn.surgery.fuse import backends_of, fuse_anew, take_apart
from composer_attn.surgery.fusion_plan import FusedSite, FusionPlan
from composer_attn.surgery.operate import (
    check_model,
    detach_all,
    find_attended,
    operate,
    plan_surgery,
)
from composer_attn.surgery.optimizers import Optimizers
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.select import Selection

__all__ = [
    "FusedSite",
    "FusionPlan",
    "Optimizers",
    "Selection",
    "Site",
    "SurgeryPlan",
    "backends_of",
    "check_model",
    "detach_all",
    "find_attended",
    "fuse_anew",
    "operate",
    "plan_surgery",
    "register_block",
    "take_apart",
]
