"""Efficient Channel Attention on a network of your own."""

from collections.abc import Mapping

from torch import nn

from composer_attn.attention import EfficientChannelAttention
from composer_attn.functional.common import Example, Filter, Optimizers, Patterns, warn_if_nothing
from composer_attn.surgery import Recipe, Selection, SurgeryPlan, operate, plan_surgery


def apply_eca(
    model: nn.Module,
    kernel_size: int | Mapping[str, int] | None = None,
    min_channels: int | None = None,
    *,
    placement: str = "conv",
    replace: bool = False,
    gamma: float = 2,
    b: float = 1,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Filter = None,
    start: str = "paper",
    gate: str = "sigmoid",
    squeeze: str = "avg",
    optimizers: Optimizers = None,
    param_group: int | None = None,
) -> SurgeryPlan:
    """Add Efficient Channel Attention after the convolutions of a model, in place.

    Like :func:`apply_squeeze_excite`, with another attention: ``y = s conv(x)``,
    ``s = gate(conv1d(mean(conv(x))))``, the inner convolution sliding over neighbouring channels
    (`Wang et al., 2020 <https://arxiv.org/abs/1910.03151>`_, equation 9).

    Args:
        model: any network.
        kernel_size: odd number of weights of each attention; ``None`` is the paper's adaptive rule,
            :func:`~composer_attn.attention.eca_kernel_size`. ``{pattern: size}`` where it differs
            by stage, like ``{"layer1.*": 3, "layer4.*": 7}``: the first pattern that matches a
            site's name counts, and the adaptive rule where none does.
        min_channels: see :func:`apply_squeeze_excite`.
        gamma: divisor of the adaptive rule.
        b: summand of the adaptive rule.
        placement: see :func:`apply_squeeze_excite`, as for all that follow.
        replace: put attention where the network has its own, which gives way.
        include: glob pattern(s) of module names to attend; all by default.
        exclude: glob pattern(s) of module names to pass over.
        filter_fn: ``filter_fn(name, module) -> bool``, asked for each remaining one.
        start: ``paper`` or ``identity``.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        squeeze: ``avg``, ``max`` or ``none``.
        optimizers: the optimizer(s) already built for the model.
        param_group: index of the one group that all new parameters join.

    Returns:
        The plan that was carried out.

    Raises:
        ComposerAttnError: as :func:`apply_squeeze_excite`; nothing was changed.

    Warns:
        NothingAttendedWarning: nothing was chosen.

    Example:
        >>> import torch
        >>> from composer_attn import apply_eca
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> print(apply_eca(model))
        EfficientChannelAttention: 1 of 1 candidates chosen, 5 parameters added
        site  kind    channels  parameters  chosen
        0     Conv2d  128       5           yes
    """
    recipe = _recipe(kernel_size, gamma, b, gate, start, squeeze)
    selection = Selection(min_channels, include, exclude, filter_fn, placement, replace)
    return warn_if_nothing(operate(model, recipe, selection, optimizers, param_group))


def plan_eca(
    model: nn.Module,
    kernel_size: int | Mapping[str, int] | None = None,
    min_channels: int | None = None,
    *,
    placement: str = "conv",
    replace: bool = False,
    gamma: float = 2,
    b: float = 1,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Filter = None,
    start: str = "paper",
    gate: str = "sigmoid",
    squeeze: str = "avg",
    optimizers: Optimizers = None,
    param_group: int | None = None,
    example: Example = None,
) -> SurgeryPlan:
    """Work out what :func:`apply_eca` would do with the same arguments; touch nothing.

    Args:
        model: any network; the arguments that are not listed are those of :func:`apply_eca`.
        example: an input to try, for what each site costs: see :func:`plan_squeeze_excite`.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: whatever :func:`apply_eca` would raise.
        ArgumentError: the model's forward fails on the example.
        ModelError: the model works on the example, but not once it is attended.

    Example:
        >>> import torch
        >>> from composer_attn import plan_eca
        >>> plan_eca(torch.nn.Conv2d(3, 64, 3)).sites[0].reason
        'fewer channels than min_channels=128'
    """
    recipe = _recipe(kernel_size, gamma, b, gate, start, squeeze)
    selection = Selection(min_channels, include, exclude, filter_fn, placement, replace)
    return plan_surgery(model, recipe, selection, optimizers, param_group, example)


def _recipe(kernel_size, gamma, b, gate, start, squeeze) -> Recipe:
    arguments = {"gamma": gamma, "b": b, "gate": gate, "start": start, "squeeze": squeeze}
    return Recipe(EfficientChannelAttention, {"kernel_size": kernel_size, **arguments})
