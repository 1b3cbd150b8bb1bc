"""Fuse the attentions of a network with its batch norms, and undo it."""

import warnings

import torch
from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.fusion import FusionPlan, backends_of, fuse, unfuse
from composer_attn.ops import check_backend, prepare
from composer_attn.surgery import check_model, find_attended


def fuse_attention(model: nn.Module, backend: str = "auto") -> FusionPlan:
    """Fuse the attentions of a network with the batch norms that they are connected to.

    Attention and batch norm both read a feature map through moments, and both write it through a
    scale (and shift) per channel: fused, they take the same number of passes over the feature map
    as batch norm alone. Parameters and state-dict keys are unchanged, and results are equal within
    rounding.

    An attended module is fused if a trace of the enclosing forward shows that its output goes to a
    batch norm; so is an attended batch norm. The addition and the ReLU that follow are fused as
    well. All other attentions are computed by the backend on their own.

    If the output of a fused module is used in any other way, now or later, it has the value of the
    attended output, and hooks see the same values as without fusion (see docs/fusion.md).

    Args:
        model: an attended network, not wrapped or compiled yet. A network that is already fused is
            fused again with this backend.
        backend: ``auto``, ``reference``, ``cpp``, ``inductor`` or ``triton``; see docs/fusion.md.

    Returns:
        The plan that was applied: for each attended site, what it is fused with, or why it is not.

    Raises:
        ArgumentError: there is no such backend.
        ModelError: the model is wrapped, compiled or scripted, or the class of a fused module was
            extended further. Nothing was changed.

    Warns:
        NothingAttendedWarning: the model has no added attention.
        BackendWarning: the backend cannot be built here; the slower reference is used instead.

    Example:
        >>> from torch import nn
        >>> from composer_attn import apply_eca, fuse_attention
        >>> layers = [nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3)]
        >>> model = nn.Sequential(*layers)
        >>> _ = apply_eca(model)
        >>> print(fuse_attention(model, backend="reference"))
        backend reference: 1 of 2 sites fused with a norm, 1 with a ReLU, 0 with an addition
        site  kind    norm  addition  relu  fused
        0     Conv2d  1     -         2     yes
        3     Conv2d  -     -         -     no: its output is the model's
    """
    check_backend(backend)
    check_model(model)
    backends = dict.fromkeys(find_attended(model).values(), backend)
    if not backends:
        warnings.warn("the model has no added attention", NothingAttendedWarning, stacklevel=2)
    plan = fuse(model, backends)
    # If a GPU is available, the network may be moved there later; kernels are then built lazily.
    if backend != "auto" or not torch.cuda.is_available():
        prepare(backend, (p.device for site in backends for p in site.attention.parameters()))
    return plan


def unfuse_attention(model: nn.Module) -> list[str]:
    """Undo :func:`fuse_attention` exactly, restoring all classes and attributes.

    Args:
        model: a network, not wrapped or compiled.

    Returns:
        The names of the attended modules that were fused; empty if none were.

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
    names = [name for name, module in find_attended(model).items() if module in fused]
    unfuse(model)
    return names
