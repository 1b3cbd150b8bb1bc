"""Attention that a network came with."""

from torch import nn

from composer_attn.surgery.names import walk

# Class names of attention modules, whoever wrote them: torchvision's, timm's (which moved between
# modules over its versions, hence bare names), Composer's, ours, and those of papers' code; channel
# attention first, then spatial and self-attention, whose convolutions make queries, keys, values.
ATTENTIONS = frozenset({
    "CbamModule", "CecaModule", "ChannelAttention", "ChannelAttentionV2", "ChannelAttn",
    "CoordAttn", "EcaModule", "EffectiveSEModule", "EfficientLocalAttn", "GatherExcite",
    "GlobalContext", "LightCbamModule", "LightChannelAttn", "LightSpatialAttn", "SEBlock",
    "SELayer", "SEModule", "SelectiveKernel", "SelectiveKernelAttn", "SimpleCoordAttn",
    "SpatialAttn", "SplitAttn", "SqueezeExcitation", "SqueezeExcite", "SqueezeExcite2d",
    "SqueezeExciteCl", "SqueezeExciteConv2d", "StripAttn", "eca_layer",
    "Attention", "Attention2d", "Attention2dDownsample", "AttentionPool2d", "BatNonLocalAttn",
    "BilinearAttnTransform", "BottleneckAttn", "CascadedGroupAttention", "ConvAttention",
    "EfficientAdditiveAttention", "EfficientAttention", "GlobalSubSampleAttn", "HaloAttn",
    "LambdaLayer", "LinearSelfAttention", "LocalWindowAttention", "MultiQueryAttention2d",
    "MultiQueryAttentionV2", "NonLocalAttn", "RotAttentionPool2d", "SpatialAttention",
})  # fmt: skip


def is_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention, that the network came with or of ours."""
    return any(cls.__name__ in ATTENTIONS for cls in type(module).__mro__)


def foreign_attentions(model: nn.Module) -> dict[str, str]:
    """Return the class names of a model's attentions by every name they go by."""
    return {n: type(module).__name__ for n, module in walk(model) if is_attention(module)}


def inside(name: str, attentions: dict[str, str]) -> str:
    """Say which of the attentions a module's name lies in; empty where it lies in none."""
    for prefix, kind in attentions.items():
        if not prefix or name == prefix or name.startswith(f"{prefix}."):
            return f"inside {kind} {prefix!r}"
    return ""
