"""Fuse the attentions of a network with its batch norms, and undo it."""

import warnings

import torch
from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.fusion import FusionPlan, backends_of, find_own, fuse, unfuse
from composer_attn.ops import check_backend, prepare
from composer_attn.surgery import check_model, find_attended


def fuse_attention(
    model: nn.Module, backend: str = "auto", *, norms: bool = False, recompute: bool = False
) -> FusionPlan:
    """Fuse the attentions of a network with the norms and activations that they are connected to.

    Attention and batch norm both read a feature map through moments, and both write it through a
    scale (and shift) per channel: fused, they take the same number of passes over the feature map
    as batch norm alone. Parameters and state-dict keys are unchanged, and results are equal within
    rounding.

    An attended module is fused if a trace of the enclosing forward shows that its output goes to a
    norm; so is an attended norm (batch norm, synchronized, ghost and frozen batch norm, group norm
    and instance norm). The addition and the activation that follow are fused
    as well. All other attentions are computed by the backend on their own.

    The network's own attention (torchvision's ``SqueezeExcitation``; timm's ``SqueezeExcite``,
    ``SEModule``, ``EffectiveSEModule`` and ``EcaModule``), or the one that replaced it, is fused
    with the norm and the activation before it, or with an activation alone: no surgery is needed.
    Only the convolution's output is kept for backward then, neither the norm's output nor the
    activation's.

    If the output of a fused module is used in any other way, now or later, it has the value of the
    attended output, and hooks see the same values as without fusion (see docs/fusion.md).

    Args:
        model: a network with attention, not wrapped or compiled yet. A network that is already
            fused is fused again with this backend.
        backend: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``; see docs/fusion.md.
        norms: whether to fuse every other norm, too, with the activation or the addition
            that follows it.
        recompute: whether to keep less for backward. A convolution whose input is the output of
            what is fused then keeps no copy of it, and computes it again in backward, in one pass,
            from what that keeps anyway. Results and gradients are the same, bit for bit.

    Returns:
        The plan that was applied: for each attended site, what it is fused with, or why it is not.

    Raises:
        ArgumentError: there is no such backend.
        ModelError: the model is wrapped, compiled or scripted, or the class of a fused module was
            extended further. Nothing was changed.

    Warns:
        NothingAttendedWarning: the model has no added attention, and nothing else was fused.
        BackendWarning: the backend cannot be built here; the slower reference is used instead.

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
    plan = fuse(
        model, dict.fromkeys([*ours, *find_own(model)], backend), backend * norms, recompute
    )
    if not ours and not plan.fused and not plan.norms:
        message = "the model has no added attention, and none of its own that can be fused"
        warnings.warn(message, NothingAttendedWarning, stacklevel=2)
    # If a GPU is available, the network may be moved there later; kernels are then built lazily.
    if backend != "auto" or not torch.cuda.is_available():
        prepare_fused(model, backend, plan)
    return plan


def prepare_fused(model: nn.Module, backend: str, plan: FusionPlan) -> None:
    """Build a backend's kernels for a plan, so that no timing includes building them."""
    norms = (model.get_submodule(site.norm) for site in plan.norms)
    modules = (*backends_of(model), *norms)
    # The parameters of a frozen norm are buffers.
    devices = (t.device for each in modules for t in (*each.parameters(), *each.buffers()))
    prepare(backend, devices, {s.function for s in (*plan.fused, *plan.norms)} - {""})


def unfuse_attention(model: nn.Module) -> list[str]:
    """Undo :func:`fuse_attention` exactly, restoring all classes and attributes.

    Args:
        model: a network, not wrapped or compiled.

    Returns:
        The names of the attended modules, and of the network's own attentions, that were fused;
        empty if none were.

    Raises:
        ModelError: the model is wrapped, compiled or scripted, or the class of a fused module was
            extended further. Nothing was changed.

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
