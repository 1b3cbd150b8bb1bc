"""Attention that a network came with."""

from difflib import get_close_matches

from torch import nn

from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.names import walk

# Class names of attention modules, whoever wrote them: torchvision's, timm's (which moved between
# modules over its versions, hence bare names), Composer's, ours, and those of papers' code.
# These take a feature map and give it back rescaled: another may stand in their place, or nothing.
RESCALING = frozenset({
    "BatNonLocalAttn", "CbamModule", "CecaModule", "CoordAttn", "EcaModule", "EffectiveSEModule",
    "EfficientLocalAttn", "GatherExcite", "GlobalContext", "LightCbamModule", "NonLocalAttn",
    "SEBlock", "SELayer", "SEModule", "SimpleCoordAttn", "SqueezeExcitation", "SqueezeExcite",
    "SqueezeExcite2d", "StripAttn", "eca_layer",
})  # fmt: skip
# And these do something else besides, or something else: the main convolutions of their block are
# in them, they return the scales alone, or make queries, keys and values.
ATTENTIONS = RESCALING | {
    "ChannelAttention", "ChannelAttentionV2", "ChannelAttn", "LightChannelAttn", "LightSpatialAttn",
    "SelectiveKernel", "SelectiveKernelAttn", "SpatialAttn", "SplitAttn", "SqueezeExciteCl",
    "SqueezeExciteConv2d",
    "Attention", "Attention2d", "Attention2dDownsample", "AttentionPool2d",
    "BilinearAttnTransform", "BottleneckAttn", "CascadedGroupAttention", "ConvAttention",
    "EfficientAdditiveAttention", "EfficientAttention", "GlobalSubSampleAttn", "HaloAttn",
    "LambdaLayer", "LinearSelfAttention", "LocalWindowAttention", "MultiQueryAttention2d",
    "MultiQueryAttentionV2", "RotAttentionPool2d", "SpatialAttention",
}  # fmt: skip


def is_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention, that the network came with or of ours."""
    return any(cls.__name__ in ATTENTIONS for cls in type(module).__mro__)


def is_rescaling(module: nn.Module) -> bool:
    """Say whether a module is an attention that another, or nothing, may stand in for."""
    return any(cls.__name__ in RESCALING for cls in type(module).__mro__)


def foreign_attentions(model: nn.Module) -> dict[str, str]:
    """Return the class names of a model's attentions, and of ours, by every name they go by."""
    return {
        name: type(module).__name__
        for name, module in walk(model)
        if is_attention(module) or _is_of_site(model, name)
    }


def _is_of_site(model: nn.Module, name: str) -> bool:
    """Say whether a module is what surgery gave an attended one, whatever its class."""
    site, _, child = name.rpartition(".")
    return child == CHILD and is_attended(model.get_submodule(site))


def inside(name: str, attentions: dict[str, str]) -> str:
    """Say which of the attentions a module's name lies in; empty where it lies in none."""
    for prefix, kind in attentions.items():
        if not prefix or name == prefix or name.startswith(f"{prefix}."):
            return f"inside {kind} {prefix!r}"
    return ""


def nothing_to_replace(model: nn.Module) -> str:
    """Say what was looked for in a model, and what comes nearest."""
    message = (
        f"{type(model).__name__} has no attention of its own that could give way; looked for "
        f"modules of the classes {', '.join(sorted(RESCALING))}"
    )
    others = foreign_attentions(model)
    if others:
        listed = ", ".join(f"{name or 'the model'} ({kind})" for name, kind in others.items())
        return f"{message}. It has {listed}, which cannot be replaced"
    kinds = sorted({type(module).__name__ for module in model.modules()})
    near = [kind for kind in kinds if get_close_matches(kind, RESCALING, n=1, cutoff=0.6)]
    return f"{message}. Nearest in it: {', '.join(near)}" if near else message
