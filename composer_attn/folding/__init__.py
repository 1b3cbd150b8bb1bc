"""Folding: merge norms into convolutions for evaluation, with correct attention in between."""

from composer_attn.folding.fold import fold, unfold
from composer_attn.folding.fold_plan import FoldedPair, FoldPlan
from composer_attn.folding.pairs import plan_pairs

__all__ = ["FoldPlan", "FoldedPair", "fold", "plan_pairs", "unfold"]
