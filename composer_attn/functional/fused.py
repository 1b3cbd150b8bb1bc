"""Compute attention jointly with the batch norms of a network, and stop doing so."""

import warnings

import torch
from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.fusion import FusionPlan, backends_of, find_own, fuse, unfuse
from composer_attn.ops import check_backend, prepare
from composer_attn.surgery import check_model, find_attended


def fuse_attention(model: nn.Module, backend: str = "auto", *, norms: bool = False) -> FusionPlan:
    """Compute the attentions of a network jointly with the norms and activations beside them.

    Attention and batch norm both read a feature map through moments, and both write it through a
    scale (and shift) per channel: together they take the passes over the feature map that batch
    norm takes alone. Same parameters, same state-dict keys, same results within rounding.

    Fused are an attended module whose output goes to a batch norm, as a trace of the forward that
    joins them shows, and an attended batch norm; the addition and the activation that follow,
    likewise, are computed along. Elsewhere the attention is computed by the backend alone.

    The attention that a network came with (torchvision's ``SqueezeExcitation``; timm's
    ``SqueezeExcite``, ``SEModule``, ``EffectiveSEModule`` and ``EcaModule``), or ours in its place,
    is computed with the batch norm and the activation before it: no surgery is needed. Kept for
    backward is then what the convolution puts out, and neither the norm's output nor the
    activation's.

    What a fused module puts out is its attended output for whoever uses it in another way, now or
    later, and hooks see what they would see (docs/fusion.md says how).

    Args:
        model: a network with attention, not wrapped or compiled yet. One that was fused before is
            fused anew, with this backend.
        backend: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``; see docs/fusion.md.
        norms: whether every other batch norm, too, is computed jointly with the activation, or the
            addition, that follows it.

    Returns:
        The plan that was carried out: each attended site, what it is fused with, or why not.

    Raises:
        ArgumentError: there is no such backend.
        ModelError: the model is wrapped, compiled or scripted, or a fused module was extended
            further. Nothing was changed.

    Warns:
        NothingAttendedWarning: the model has no attention of ours, and nothing else was fused.
        BackendWarning: the backend cannot be built here; the slower reference takes its place.

    Example:
        >>> from torch import nn
        >>> from composer_attn import apply_eca, fuse_attention
        >>> layers = [nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3)]
        >>> model = nn.Sequential(*layers)
        >>> _ = apply_eca(model)
        >>> print(fuse_attention(model, backend="reference"))
        backend reference: 1 of 2 sites fused with a norm, 1 with an activation, 0 with an addition
        site  kind    norm  activation  addition  fused
        0     Conv2d  1     2           -         yes
        3     Conv2d  -     -           -         no: its output is the model's
    """
    check_backend(backend)
    check_model(model)
    ours = list(find_attended(model).values())
    plan = fuse(model, dict.fromkeys([*ours, *find_own(model)], backend), backend * norms)
    if not ours and not plan.fused and not plan.norms:
        message = "the model has no attention of ours, and none of its own that can be fused"
        warnings.warn(message, NothingAttendedWarning, stacklevel=2)
    # With a GPU at hand the network may be on its way there: then the first pass builds what it is.
    if backend != "auto" or not torch.cuda.is_available():
        prepare_fused(model, backend, plan)
    return plan


def prepare_fused(model: nn.Module, backend: str, plan: FusionPlan) -> None:
    """Build what a backend runs for a plan, before anything is timed."""
    norms = (model.get_submodule(site.norm) for site in plan.norms)
    devices = (p.device for each in (*backends_of(model), *norms) for p in each.parameters())
    prepare(backend, devices, {s.function for s in (*plan.fused, *plan.norms)} - {""})


def unfuse_attention(model: nn.Module) -> list[str]:
    """Undo :func:`fuse_attention` exactly: classes and attributes are those of before.

    Args:
        model: a network, not wrapped or compiled.

    Returns:
        The names of the attended modules, and of attentions that the network came with, that were
        fused; none is no error.

    Raises:
        ModelError: the model is wrapped, compiled or scripted, or a fused module was extended
            further. Nothing was changed.

    Example:
        >>> from torch import nn
        >>> from composer_attn import apply_eca, fuse_attention, unfuse_attention
        >>> model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128))
        >>> _ = apply_eca(model), fuse_attention(model, backend="reference")
        >>> unfuse_attention(model), type(model[1]).__name__
        (['0'], 'BatchNorm2d')
    """
    check_model(model)
    fused = backends_of(model)
    names = [name for name, module in model.named_modules() if module in fused]
    unfuse(model)
    return names
