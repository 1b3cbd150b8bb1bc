"""Fold the norms of a network into its convolutions for evaluation, and restore them."""

import copy
import warnings
from collections import Counter

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from composer_attn.errors import ModelError, NothingFoldedWarning, first_few
from composer_attn.folding import FoldPlan, fold, plan_pairs, unfold
from composer_attn.fusion import backends_of, fuse, norms_of, unfuse
from composer_attn.ops import check_backend, prepare_excited
from composer_attn.surgery import check_model

# Attribute of a fused site whose network is folded: its backend before folding.
_BACKEND = "_attn_backend_before"
# Attribute of a folded network: the backend of its other fused norms before folding.
_NORMS = "_attn_norms_before"


def plan_folding(model: nn.Module) -> FoldPlan:
    """Plan what :func:`fold_norms` would do, without changing anything.

    Args:
        model: a network in evaluation mode.

    Returns:
        A plan that lists every convolution with the norm that would be folded into it, or why none
        would be; printing it shows a table.

    Raises:
        ModelError: the model is in training mode, wrapped, compiled, scripted or already folded.

    Example:
        >>> from torch import nn
        >>> from composer_attn import apply_eca, plan_folding
        >>> model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.Conv2d(128, 8, 1))
        >>> _ = apply_eca(model.eval())
        >>> print(plan_folding(model))
        1 of 2 convolutions have a norm folded in, 1 of them with attention between the two
        convolution  kind    attended  norm  folded
        0            Conv2d  yes       1     yes
        2            Conv2d  -         -     no: its output is the model's
    """
    _check(model)
    bring_back = unfuse(model)
    try:
        return plan_pairs(model)
    finally:
        bring_back()


def fold_norms(model: nn.Module, *, inplace: bool = True, backend: str = "auto") -> nn.Module:
    """Fold the norms of a network into its convolutions for evaluation, with correct attention.

    A norm that follows a convolution is merged into its weights. If attention stands between the
    two, ``norm(attention(conv(x)))``, the weights absorb the norm's scale ``c``, the squeezed
    values are multiplied by ``1 / c``, so that the attention sees what it would have seen (in a
    Squeeze-and-Excitation the first layer absorbs this factor), and the norm's shift is added after
    it: a convolution, a mean, two small products and one multiply-add. An attended norm
    (``placement="norm"``) is folded into the convolution, and its attention remains. Outputs are
    unchanged up to rounding.

    A norm is folded if a trace of the forward shows that it is the only consumer of the
    convolution's output; :func:`plan_folding` lists which are, and why the others are not. Modules
    and names stay the same. The folded weights are new parameters that do not require gradients.
    The original ones are kept (in memory, and in a pickled model) for :func:`unfold_norms`.

    Args:
        model: a network in evaluation mode, attended or not, fused or not, not wrapped or compiled
            yet. A fused network computes its attentions unfused while it is folded.
        inplace: whether to fold the model itself; ``False`` folds a copy and leaves the model
            unchanged.
        backend: ``auto`` or ``cpp``: on a CPU, in float32 or float64 and without gradients, one
            call of C++, built now, attends each convolution's output in place. Others:
            operations of torch, as for all other devices and dtypes, and for traces and exports.

    Returns:
        The folded network: the model itself, or the copy.

    Raises:
        ArgumentError: there is no such backend.
        ModelError: the model is in training mode, wrapped, compiled, scripted or already folded.
            Nothing was changed.

    Warns:
        BackendWarning: the C++ cannot be built here; operations of torch are used instead.
        NothingFoldedWarning: no norm could be folded.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from composer_attn import apply_eca, fold_norms, unfold_norms
        >>> model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.ReLU())
        >>> _ = apply_eca(model.eval())
        >>> x = torch.randn(2, 3, 8, 8)
        >>> folded = fold_norms(model, inplace=False)
        >>> torch.allclose(folded(x), model(x), atol=1e-5)
        True
        >>> type(folded[1]).__name__, unfold_norms(folded), type(folded[1]).__name__
        ('FoldedNorm', ['1'], 'BatchNorm2d')
    """
    check_backend(backend)
    _check(model)
    model = model if inplace else copy.deepcopy(model)
    backends, norms = backends_of(model), norms_of(model)
    bring_back = unfuse(model)
    try:
        plan = plan_pairs(model)
        fold(model, plan, backend)
    except BaseException:
        bring_back()
        raise
    if not plan.folded:
        bring_back()
        reasons = Counter(pair.reason for pair in plan.left).most_common(5)
        said = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        message = f"no norm was folded: {said or 'the model has no convolutions'}"
        warnings.warn(message, NothingFoldedWarning, stacklevel=2)
        return model
    if any(pair.attended and _on_cpu(model.get_submodule(pair.name)) for pair in plan.folded):
        prepare_excited(backend)
    for site, name in backends.items():
        vars(site)[_BACKEND] = name
    if norms:
        vars(model)[_NORMS] = norms
    return model


def unfold_norms(model: nn.Module) -> list[str]:
    """Undo :func:`fold_norms` exactly, restoring parameters, buffers and classes.

    The original parameter and buffer objects are restored, so the state dict is bitwise identical.
    Sites that were fused before are fused again.

    Args:
        model: a folded network (the model itself or a folded copy), not wrapped or compiled.

    Returns:
        The names of the restored norms; an empty list is not an error.

    Raises:
        ModelError: the model is wrapped, compiled or scripted; a folded weight was changed since;
            or only one module of a convolution and norm pair is in the model. Nothing was changed.

    Example:
        >>> from torch import nn
        >>> from composer_attn import fold_norms, unfold_norms
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> before = list(model.state_dict())
        >>> list(fold_norms(model).state_dict())
        ['0.weight', '0.bias']
        >>> unfold_norms(model), list(model.state_dict()) == before
        (['1'], True)
    """
    check_model(model, folded=True)
    names = unfold(model)
    sites = [module for module in model.modules() if _BACKEND in vars(module)]
    backends: dict[nn.Module, str] = {site: vars(site).pop(_BACKEND) for site in sites}
    norms = vars(model).pop(_NORMS, "")
    if backends or norms:
        fuse(model, backends, norms)
    return names


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())


def _check(model: nn.Module) -> None:
    """Raise if a model cannot be folded, before anything changes."""
    check_model(model)
    training = [
        name
        for name, module in model.named_modules()
        if module.training and (module is model or isinstance(module, _BatchNorm))
    ]
    if training:
        listed = first_few([name or "the model" for name in training])
        raise ModelError(
            f"{listed}: in training mode, where a norm uses the statistics of the batch and cannot "
            "be folded: call eval() first"
        )
