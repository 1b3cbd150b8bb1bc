"""Channel attention for any CNN: in a Composer Trainer, from YAML, or by functions on a network.

Submodules are imported lazily, so that ``import composer_attn`` is fast, and the functions work
where Composer cannot be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import wrapt

if TYPE_CHECKING:
    from composer_attn.algorithms import ECA, Attention, FuseAttention, SqueezeExcite
    from composer_attn.attention import (
        ChannelAttention,
        EfficientChannelAttention,
        SqueezeExcitation,
        eca_kernel_size,
        register_attention,
    )
    from composer_attn.callbacks import ExcitationMonitor
    from composer_attn.folding import FoldedPair, FoldPlan
    from composer_attn.functional import (
        FittingSurgery,
        apply_attention,
        apply_eca,
        apply_squeeze_excite,
        attended_modules,
        detach_attention,
        expanded_copy,
        export_weights,
        fold_norms,
        fuse_attention,
        load_weights,
        plan_attention,
        plan_eca,
        plan_folding,
        plan_from_weights,
        plan_squeeze_excite,
        remove_attention,
        unfold_norms,
        unfuse_attention,
    )
    from composer_attn.fusion import FusedSite, FusionPlan
    from composer_attn.heatmaps import HeatMaps, heat_maps
    from composer_attn.runs.inference import LoadedRun, load_run
    from composer_attn.surgery import Site, SurgeryPlan, register_block, register_existing_attention

__version__ = "0.1.0"

_HOMES = {
    "Attention": "algorithms",
    "ChannelAttention": "attention",
    "ECA": "algorithms",
    "EfficientChannelAttention": "attention",
    "ExcitationMonitor": "callbacks",
    "FittingSurgery": "functional",
    "FoldPlan": "folding",
    "FoldedPair": "folding",
    "FuseAttention": "algorithms",
    "FusedSite": "fusion",
    "FusionPlan": "fusion",
    "HeatMaps": "heatmaps",
    "LoadedRun": "runs.inference",
    "Site": "surgery",
    "SqueezeExcitation": "attention",
    "SqueezeExcite": "algorithms",
    "SurgeryPlan": "surgery",
    "apply_attention": "functional",
    "apply_eca": "functional",
    "apply_squeeze_excite": "functional",
    "attended_modules": "functional",
    "detach_attention": "functional",
    "eca_kernel_size": "attention",
    "expanded_copy": "functional",
    "export_weights": "functional",
    "fold_norms": "functional",
    "fuse_attention": "functional",
    "heat_maps": "heatmaps",
    "load_run": "runs.inference",
    "load_weights": "functional",
    "plan_attention": "functional",
    "plan_eca": "functional",
    "plan_folding": "functional",
    "plan_from_weights": "functional",
    "plan_squeeze_excite": "functional",
    "register_attention": "attention",
    "register_block": "surgery",
    "register_existing_attention": "surgery",
    "remove_attention": "functional",
    "unfold_norms": "functional",
    "unfuse_attention": "functional",
}

__all__ = [
    "ECA",
    "Attention",
    "ChannelAttention",
    "EfficientChannelAttention",
    "ExcitationMonitor",
    "FittingSurgery",
    "FoldPlan",
    "FoldedPair",
    "FuseAttention",
    "FusedSite",
    "FusionPlan",
    "HeatMaps",
    "LoadedRun",
    "Site",
    "SqueezeExcitation",
    "SqueezeExcite",
    "SurgeryPlan",
    "apply_attention",
    "apply_eca",
    "apply_squeeze_excite",
    "attended_modules",
    "detach_attention",
    "eca_kernel_size",
    "expanded_copy",
    "export_weights",
    "fold_norms",
    "fuse_attention",
    "heat_maps",
    "load_run",
    "load_weights",
    "plan_attention",
    "plan_eca",
    "plan_folding",
    "plan_from_weights",
    "plan_squeeze_excite",
    "register_attention",
    "register_block",
    "register_existing_attention",
    "remove_attention",
    "unfold_norms",
    "unfuse_attention",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@wrapt.when_imported("composer.algorithms")
def _register_algorithms(_module) -> None:
    """Let Composer find our algorithms in checkpoints, whichever of the two is imported first."""
    import_module(f"{__name__}.algorithms")
