"""Recognize the built-in attention of a network by its forward, its class or its name."""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from composer_attn.errors import ArgumentError
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.existing_attention.recognition import Findings, findings, has_own_forward
from composer_attn.surgery.names import walk

# Class names of attention modules. In the packages that define them they are certain (bare names,
# since timm has moved classes between modules); anywhere else they are a hint.
_PACKAGES = frozenset({"timm", "torchvision", "composer", "composer_attn"})
# These return their input rescaled: they can be replaced or removed.
RESCALING = frozenset({
    "BatNonLocalAttn", "CbamModule", "CecaModule", "CoordAttn", "EcaModule", "EffectiveSEModule",
    "EfficientLocalAttn", "GatherExcite", "GlobalContext", "LightCbamModule", "NonLocalAttn",
    "SEBlock", "SELayer", "SEModule", "SimpleCoordAttn", "SqueezeExcitation", "SqueezeExcite",
    "SqueezeExcite2d", "StripAttn", "eca_layer",
})  # fmt: skip
# These do something more, or something else: they contain the main convolutions of their block,
# return only the scales, or compute queries, keys and values.
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

# Common names of custom attentions, as the last resort: SE_Block, ECALayer, CBAM, ...
_HINT = re.compile(
    r"(?:my_?)?(?:(?:c|s|sc|e)?se|c?eca|s?c?bam|sim_?am|(?:light)?cbam"
    r"|(?:efficient_?|effective_?)?(?:squeeze_?(?:and_?|n_?)?excit(?:e|ation)|channel_?(?:se|att|attn"
    r"|attention|gate))|coord(?:inate)?_?att(?:n|ention)?|gather_?excite|global_?context)"
    r"_?(?:block|layer|module|unit|att|attn|attention|gate)?_?(?:[123]d)?",
    re.IGNORECASE,
)

_KINDS = ("rescaling", "fixed", "none")
REGISTER = "see register_existing_attention"
_registered: dict[type, str] = {}


def register_existing_attention(cls: type[nn.Module], kind: str = "rescaling") -> None:
    """Register whether modules of a class are attention, if their forward does not show it.

    Built-in attention is recognized by running a copy of each module on the meta device: a value is
    pooled, passes through layers and a gate, and multiplies the map it was pooled from. Use this
    function if a forward cannot be run in this way (it reads values, calls a custom kernel, or
    takes more than one feature map), or if the result is wrong.

    Args:
        cls: the class; subclasses are included.
        kind: ``rescaling``: it returns its input ``(N, C, *spatial)`` rescaled; nothing inside is
            attended, and it is replaced by ``replace=True`` and removed by
            :func:`~composer_attn.remove_attention`. ``fixed``: an attention that its block needs;
            nothing inside is attended. ``none``: not an attention.

    Raises:
        ArgumentError: ``cls`` is not a subclass of ``torch.nn.Module``, or ``kind`` is unknown.

    Example:
        >>> from torch import nn
        >>> from composer_attn import plan_eca, register_existing_attention
        >>> class Excite(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Conv2d(128, 128, 1)
        ...     def forward(self, x):
        ...         return x * self.fc(x.mean((2, 3), keepdim=True)) if x.sum() > 0 else x
        >>> model = nn.Sequential(nn.Conv2d(3, 128, 3), Excite())
        >>> [site.name for site in plan_eca(model).chosen]
        ['0', '1.fc']
        >>> register_existing_attention(Excite)
        >>> [site.name for site in plan_eca(model).chosen]
        ['0']
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ArgumentError(
            f"register_existing_attention takes a class of torch.nn.Module; got {cls!r}"
        )
    if kind not in _KINDS:
        raise ArgumentError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}")
    _registered[cls] = kind


@dataclass(frozen=True)
class Existing:
    """The classification of a module.

    Attributes:
        kind: ``rescaling``: it can be replaced or removed; ``fixed``: an attention that its block
            needs; ``none``: not an attention.
        channels: number of channels it rescales, if its layers determine it, else 0.
        layers: names of the convolutions in it that compute scales, if it is not an attention
            itself.
        doubt: why it was classified by name only; empty if it is certain.
        traced: whether it was classified by its forward.
    """

    kind: str = "none"
    channels: int = 0
    layers: tuple[str, ...] = ()
    doubt: str = ""
    traced: bool = False


def existing(module: nn.Module) -> Existing:
    """Classify a module: by registration, known package, forward or name, in this order."""
    classes = type(module).__mro__
    said = next((_registered[cls] for cls in classes if cls in _registered), None)
    if said is not None:
        return Existing(said)
    certain = {cls.__name__ for cls in classes if cls.__module__.partition(".")[0] in _PACKAGES}
    if certain & ATTENTIONS:
        return Existing("rescaling" if certain & RESCALING else "fixed")
    if not has_own_forward(module):
        return Existing()
    found = findings(module)
    if found.rescales:
        return Existing("rescaling", found.channels, traced=True)
    if found.is_scales:
        return Existing("fixed", traced=True)
    return _by_name(module, found)


def _by_name(module: nn.Module, found: Findings) -> Existing:
    names = {cls.__name__ for cls in type(module).__mro__}
    none = Existing(layers=found.layers)
    # A name does not overrule a forward that was traced; but self-attention has no gate.
    unclear = found.trouble or found.mixes_positions
    if names & (ATTENTIONS - RESCALING) and (unclear or found.layers):
        return Existing("fixed", doubt=found.trouble)
    if not unclear:
        return none
    if names & RESCALING and not _has_wide_kernels(module):
        return Existing("rescaling", doubt=found.trouble)
    hinted = found.trouble and _HINT.fullmatch(type(module).__name__)
    if hinted and not _has_wide_kernels(module):
        return Existing("fixed", doubt=found.trouble)
    return none


def _has_wide_kernels(module: nn.Module) -> bool:
    """Return whether it has full spatial convolutions, which a block has and an attention not."""
    return any(
        isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and max(part.kernel_size) > 1
        and part.groups == 1
        and min(part.in_channels, part.out_channels) > 2
        for part in module.modules()
    )


def is_attention(module: nn.Module) -> bool:
    """Return whether a module is an attention, built-in or added."""
    return existing(module).kind != "none"


def is_rescaling(module: nn.Module) -> bool:
    """Return whether a module is an attention that can be replaced or removed."""
    return existing(module).kind == "rescaling"


def existing_attentions(model: nn.Module) -> dict[str, str]:
    """Describe a model's attentions, by each of their names.

    Convolutions that compute scales in the forward of a block are included individually.
    """
    modules, layers = {}, {}
    for name, module in walk(model):
        if _is_of_site(model, name):
            modules[name] = f"{type(module).__name__} {name!r}"
            continue
        if not any(
            isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules()
        ):
            continue  # it contains nothing to attend
        found = existing(module)
        kind = type(module).__name__
        if found.kind != "none":
            modules[name] = f"{kind} {name!r}{_doubtful(found)}"
        prefix = f"{name}." if name else ""
        layers.update({f"{prefix}{n}": f"the attention of {kind} {name!r}" for n in found.layers})
    return {**modules, **{n: what for n, what in layers.items() if n not in modules}}


def _is_of_site(model: nn.Module, name: str) -> bool:
    """Return whether a name is that of an attention added by surgery, whatever its class."""
    site, _, child = name.rpartition(".")
    return child == CHILD and is_attended(model.get_submodule(site))


def _doubtful(found: Existing) -> str:
    if not found.doubt:
        return ""
    return f" (judging by its name{_untraced(found).replace(':', ';', 1)}; {REGISTER})"


def _untraced(found: Existing) -> str:
    return f": its forward cannot be traced: {found.doubt}" if found.doubt else ""


def inside(name: str, attentions: dict[str, str]) -> str:
    """Return which attention encloses a module, by name; empty if none does."""
    for prefix, what in attentions.items():
        if not prefix or name == prefix or name.startswith(f"{prefix}."):
            return f"inside {what}"
    return ""


def nothing_to_replace(model: nn.Module) -> str:
    """Describe what was searched for in a model, and the closest matches."""
    message = (
        f"{type(model).__name__} has no attention of its own to replace or remove; looked for "
        "modules that multiply their input by scales pooled from it, and for those of the classes "
        f"{', '.join(sorted(RESCALING))}; register_existing_attention(cls) declares others"
    )
    others = {n: (type(m).__name__, existing(m)) for n, m in walk(model) if is_attention(m)}
    if others:
        listed = ", ".join(
            f"{name or 'the model'} ({kind}{_untraced(found)})"
            for name, (kind, found) in others.items()
        )
        return f"{message}. It has {listed}, which cannot be replaced"
    kinds = sorted({type(module).__name__ for module in model.modules()})
    near = [kind for kind in kinds if get_close_matches(kind, RESCALING, n=1, cutoff=0.6)]
    return f"{message}. Closest matches: {', '.join(near)}" if near else message
