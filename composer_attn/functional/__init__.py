"""Surgery on any CNN without Composer: attend its convolutions in place, and undo it.

Importing this package requires only torch.
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
from composer_attn.functional.published_attention import (
    FittingSurgery,
    export_weights,
    plan_from_weights,
)
from composer_attn.functional.squeeze_excite import apply_squeeze_excite, plan_squeeze_excite
from composer_attn.functional.weights import load_weights

__all__ = [
    "FittingSurgery",
    "apply_attention",
    "apply_eca",
    "apply_squeeze_excite",
    "attended_modules",
    "detach_attention",
    "expanded_copy",
    "export_weights",
    "fold_norms",
    "fuse_attention",
    "load_weights",
    "plan_attention",
    "plan_eca",
    "plan_folding",
    "plan_from_weights",
    "plan_squeeze_excite",
    "remove_attention",
    "unfold_norms",
    "unfuse_attention",
]
