"""Surgery on any CNN, without Composer: attend its convolutions in place, and give it back.

Importing this package loads torch alone.
"""

from composer_attn.functional.attended import (
    attended_modules,
    detach_attention,
    remove_attention,
)
from composer_attn.functional.attention import apply_attention, plan_attention
from composer_attn.functional.eca import apply_eca, plan_eca
from composer_attn.functional.expanded import expanded_copy
from composer_attn.functional.folded import fold_norms, plan_folding, unfold_norms
from composer_attn.functional.fused import fuse_attention, unfuse_attention
from composer_attn.functional.squeeze_excite import apply_squeeze_excite, plan_squeeze_excite
from composer_attn.functional.weights import load_weights

__all__ = [
    "apply_attention",
    "apply_eca",
    "apply_squeeze_excite",
    "attended_modules",
    "detach_attention",
    "expanded_copy",
    "fold_norms",
    "fuse_attention",
    "load_weights",
    "plan_attention",
    "plan_eca",
    "plan_folding",
    "plan_squeeze_excite",
    "remove_attention",
    "unfold_norms",
    "unfuse_attention",
]
