"""Attention that a network came with: known by what its forward does, by its class, or by name."""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from composer_attn.errors import ArgumentError
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.existing_attention.recognition import Findings, findings, has_own_forward
from composer_attn.surgery.names import walk

# Class names of attention modules. In the packages that they are from (timm's moved between modules
# over its versions, hence bare names) they are certain; anywhere else, a hint.
_PACKAGES = frozenset({"timm", "torchvision", "composer", "composer_attn"})
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

# How people name an attention of their own, where nothing else tells: SE_Block, ECALayer, CBAM, ...
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
    """Say whether modules of a class are attention, where their forward does not show it.

    Attention that a network came with is found by running a copy of each module on shapes alone:
    something is pooled, goes through layers and a gate, and multiplies what it was pooled from.
    Where a forward cannot be run in this way (it looks at values, calls a kernel of its own, or
    takes more than one feature map), or where what was found is wrong, this says what is so.

    Args:
        cls: the class; its subclasses are meant, too.
        kind: ``rescaling``: it takes a feature map ``(N, C, *spatial)`` and gives it back rescaled:
            nothing inside is attended, and with ``replace=True``, or
            :func:`~composer_attn.remove_attention`, it gives way. ``fixed``: an attention that its
            block needs: nothing inside is attended. ``none``: it is no attention.

    Raises:
        ArgumentError: ``cls`` is no class of modules, or there is no such kind.

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
    """What a module is taken for.

    Attributes:
        kind: ``rescaling``: another, or nothing, may stand in for it; ``fixed``: an attention that
            its block needs; ``none``: no attention.
        channels: what it rescales, where its layers tell.
        layers: names in it of convolutions that compute scales, where it is no attention itself.
        doubt: why this is by its name alone; empty where it is certain.
        traced: whether its forward shows it.
    """

    kind: str = "none"
    channels: int = 0
    layers: tuple[str, ...] = ()
    doubt: str = ""
    traced: bool = False


def existing(module: nn.Module) -> Existing:
    """Tell what attention a module is: registered, of a known package, by its forward, by name."""
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
    # What a forward was seen not to do, a name does not make it; but self-attention has no gate.
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
    """Tell a block from an attention: whether it has convolutions of all channels over space."""
    return any(
        isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and max(part.kernel_size) > 1
        and part.groups == 1
        and min(part.in_channels, part.out_channels) > 2
        for part in module.modules()
    )


def is_attention(module: nn.Module) -> bool:
    """Say whether a module is an attention, that the network came with or of ours."""
    return existing(module).kind != "none"


def is_rescaling(module: nn.Module) -> bool:
    """Say whether a module is an attention that another, or nothing, may stand in for."""
    return existing(module).kind == "rescaling"


def existing_attentions(model: nn.Module) -> dict[str, str]:
    """Return what a model's attentions are called, by every name they go by.

    Convolutions that compute scales within a block's own forward are among them, each by itself.
    """
    modules, layers = {}, {}
    for name, module in walk(model):
        if _is_of_site(model, name):
            modules[name] = f"{type(module).__name__} {name!r}"
            continue
        if not any(
            isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) for part in module.modules()
        ):
            continue  # nothing in it could be attended
        found = existing(module)
        kind = type(module).__name__
        if found.kind != "none":
            modules[name] = f"{kind} {name!r}{_doubtful(found)}"
        prefix = f"{name}." if name else ""
        layers.update({f"{prefix}{n}": f"the attention of {kind} {name!r}" for n in found.layers})
    return {**modules, **{n: what for n, what in layers.items() if n not in modules}}


def _is_of_site(model: nn.Module, name: str) -> bool:
    """Say whether a module is what surgery gave an attended one, whatever its class."""
    site, _, child = name.rpartition(".")
    return child == CHILD and is_attended(model.get_submodule(site))


def _doubtful(found: Existing) -> str:
    if not found.doubt:
        return ""
    return f" (so its name says{_untraced(found).replace(':', ';', 1)}; {REGISTER})"


def _untraced(found: Existing) -> str:
    return f": its forward cannot be traced: {found.doubt}" if found.doubt else ""


def inside(name: str, attentions: dict[str, str]) -> str:
    """Say which of the attentions a module's name lies in; empty where it lies in none."""
    for prefix, what in attentions.items():
        if not prefix or name == prefix or name.startswith(f"{prefix}."):
            return f"inside {what}"
    return ""


def nothing_to_replace(model: nn.Module) -> str:
    """Say what was looked for in a model, and what comes nearest."""
    message = (
        f"{type(model).__name__} has no attention of its own that could give way; looked for "
        "modules that multiply their input by scales pooled from it, and for those of the classes "
        f"{', '.join(sorted(RESCALING))}; register_existing_attention(cls) makes others known"
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
    return f"{message}. Nearest in it: {', '.join(near)}" if near else message
