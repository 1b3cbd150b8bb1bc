"""Access or remove the attentions of a network."""

import warnings

from torch import nn

from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional.common import Optimizers, Patterns
from composer_attn.functional.detach import detach_all, remove_all
from composer_attn.surgery import Selection, check_no_orphans, find_attended


def attended_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attentions of a model by the names of the attended modules.

    Raises:
        ModelError: the model holds orphaned attention, whose module was rebuilt or given another
            class after the surgery: see docs/other_code.md.

    Example:
        >>> import torch
        >>> from composer_attn import apply_eca, attended_modules
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3))
        >>> _ = apply_eca(model)
        >>> attended_modules(model)["0"].kernel_size
        5
    """
    check_no_orphans(model)
    return {name: module.attention for name, module in find_attended(model).items()}


def detach_attention(model: nn.Module, optimizers: Optimizers = None) -> dict[str, nn.Module]:
    """Remove all attentions that were added to a model, exactly undoing the surgery.

    Classes, state-dict keys, parameter groups and outputs are those of the model before the surgery
    (except for any training since). Built-in attention that was replaced is restored.

    Args:
        model: an attended network.
        optimizers: the optimizer(s) that hold the attentions' parameters, which are removed along
            with their state.

    Returns:
        The removed attentions, by the names of the modules that they attended.

    Raises:
        ModelError: the model is wrapped, compiled or scripted, or an attended module's class was
            extended further. Nothing was changed.
        OptimizerError: ``optimizers`` holds something else, or an optimizer that cannot be changed.

    Warns:
        NothingAttendedWarning: the model has no added attention.

    Example:
        >>> import torch
        >>> from composer_attn import apply_eca, detach_attention
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3))
        >>> _ = apply_eca(model)
        >>> list(detach_attention(model)), type(model[0]).__name__
        (['0'], 'Conv2d')
    """
    detached = detach_all(model, optimizers)
    if not detached:
        warnings.warn("the model has no added attention", NothingAttendedWarning, stacklevel=2)
    return detached


def remove_attention(
    model: nn.Module,
    *,
    include: Patterns = None,
    exclude: Patterns = None,
    optimizers: Optimizers = None,
) -> dict[str, nn.Module]:
    """Remove the built-in attention of a network permanently.

    Each attention that ``apply_eca(model, replace=True)`` would replace becomes an ``nn.Identity``:
    the network runs, trains and exports without it. Added attention is kept; to remove it, see
    :func:`detach_attention`.

    Args:
        model: any network.
        include: glob pattern(s) of the names of attentions to remove; all by default.
        exclude: glob pattern(s) of those to keep.
        optimizers: the optimizer(s) that hold the attentions' parameters, which are removed along
            with their state.

    Returns:
        The removed attentions, by name.

    Raises:
        PatternError: a pattern matches none of them.
        ModelError: the model is wrapped, compiled or scripted. Nothing was changed.
        OptimizerError: ``optimizers`` holds something else, or an optimizer that cannot be changed.

    Warns:
        NothingAttendedWarning: the model has no built-in attention.

    Example:
        >>> import torchvision
        >>> from composer_attn import remove_attention
        >>> model = torchvision.models.efficientnet_b0()
        >>> len(remove_attention(model)), sum(p.numel() for p in model.parameters())
        (16, 4652008)
    """
    selection = Selection(None, include, exclude, replace=True)
    removed = remove_all(model, selection, optimizers)
    if not removed:
        warnings.warn("the model has no attention of its own", NothingAttendedWarning, stacklevel=2)
    return removed
