"""Which convolutions of a model to attend, and why not the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.surgery.attend import is_attended
from composer_attn.surgery.names import as_patterns, check_patterns, matches, walk

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Class names of attention modules, whoever wrote them: torchvision's, timm's (which moved between
# modules over its versions, hence bare names), Composer's, ours, and those of papers' code; channel
# attention first, then spatial and self-attention, whose convolutions make queries, keys and values.
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


@dataclass(frozen=True)
class Selection:
    """What the caller asks for; all conditions must hold.

    Attributes:
        min_channels: the least number of output channels.
        include: patterns of which a site's name must match one; ``None`` is every name.
        exclude: patterns of which a site's name must match none.
        filter_fn: ``filter_fn(name, module) -> bool``, asked last.
    """

    min_channels: int
    include: str | Iterable[str] | None = None
    exclude: str | Iterable[str] | None = None
    filter_fn: Callable[[str, nn.Module], bool] | None = None

    def __post_init__(self):
        whole_number("min_channels", self.min_channels)
        object.__setattr__(self, "include", as_patterns("include", self.include))
        object.__setattr__(self, "exclude", as_patterns("exclude", self.exclude))
        if self.filter_fn is not None and not callable(self.filter_fn):
            raise ArgumentError(
                "filter_fn must be a function of (name, module) that returns a bool; "
                f"got {self.filter_fn!r}"
            )


@dataclass(frozen=True)
class Candidate:
    """A convolution of the model: its first name, all of its names, and what encloses it."""

    name: str
    names: tuple[str, ...]
    module: nn.Module
    enclosing: str


def is_attention(module: nn.Module) -> bool:
    """Say whether a module is a channel (or other) attention that came with the network."""
    return any(cls.__name__ in ATTENTIONS for cls in type(module).__mro__)


def find_candidates(model: nn.Module) -> list[Candidate]:
    """List every convolution of a model once, in the order in which the model names them."""
    names: dict[nn.Module, list[str]] = {}
    enclosing: dict[nn.Module, str] = {}
    attentions: dict[str, str] = {}
    for name, module in walk(model):
        if is_attention(module):
            attentions[name] = type(module).__name__
        if isinstance(module, CONVOLUTIONS):
            names.setdefault(module, []).append(name)
            for prefix, kind in attentions.items():
                if not prefix or name.startswith(f"{prefix}."):
                    enclosing.setdefault(module, f"inside {kind} {prefix!r}")
    return [Candidate(n[0], tuple(n), m, enclosing.get(m, "")) for m, n in names.items()]


def reason_against(candidate: Candidate, selection: Selection) -> str:
    """Say why a candidate is passed over; empty where it is chosen."""
    channels = candidate.module.out_channels
    if is_attended(candidate.module):
        return "already attended"
    if candidate.enclosing:
        return candidate.enclosing
    if channels < selection.min_channels:
        return f"fewer channels than min_channels={selection.min_channels}"
    if selection.include is not None and not matches(candidate.names, selection.include):
        return "not in include"
    if matches(candidate.names, selection.exclude or ()):
        return "in exclude"
    if selection.filter_fn and not selection.filter_fn(candidate.name, candidate.module):
        return "filter_fn said no"
    return ""


def select(model: nn.Module, selection: Selection) -> list[tuple[Candidate, str]]:
    """Pair every candidate with the reason why it is passed over (empty: chosen).

    Raises:
        PatternError: a pattern matches no candidate.
    """
    candidates = find_candidates(model)
    names = [name for candidate in candidates for name in candidate.names]
    check_patterns("include", selection.include, names)
    check_patterns("exclude", selection.exclude, names)
    return [(candidate, reason_against(candidate, selection)) for candidate in candidates]
