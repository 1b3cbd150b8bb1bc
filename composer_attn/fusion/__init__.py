"""Fusion: compute attention jointly with the norm, addition and activation around it."""

from composer_attn.fusion.fuse import backends_of, fuse, norms_of, unfuse
from composer_attn.fusion.fusion_plan import FusedSite, FusionPlan
from composer_attn.fusion.own_attention import find_own

__all__ = ["FusedSite", "FusionPlan", "backends_of", "find_own", "fuse", "norms_of", "unfuse"]
