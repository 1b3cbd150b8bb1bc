"""Apply any attention to any network: a registered one by name, or a custom one."""

from typing import Any, overload

from torch import nn
from typing_extensions import Unpack

from composer_attn.attention.registry import Attention, find_attention
from composer_attn.attention.signatures import signed
from composer_attn.functional.apply import apply_surgery, plan_surgery
from composer_attn.functional.common import Example, warn_if_nothing
from composer_attn.functional.keywords import DEFAULTS, SITES, TRAINED, AnySurgery, split
from composer_attn.surgery import Recipe, Selection, SurgeryPlan


@overload
def apply_attention(
    model: nn.Module, attention: Attention, **keywords: Unpack[AnySurgery]
) -> SurgeryPlan: ...


@overload
def apply_attention(model: nn.Module, attention: Attention, **arguments: Any) -> SurgeryPlan: ...


@signed(AnySurgery, *DEFAULTS, free=True)
def apply_attention(model: nn.Module, attention: Attention, **arguments: Any) -> SurgeryPlan:
    """Add an attention after the convolutions of a model, in place.

    Each chosen ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` remains the same object, with the same
    parameters and state-dict keys, and passes its output through a new child module named
    ``attention``. Convolutions that are attended already, or that are inside an added or built-in
    attention, are passed over; applying twice changes nothing. Apply before wrapping in DDP or
    FSDP, and before compiling.

    Args:
        model: any network.
        attention: a registered name, such as ``squeeze_excite`` or ``eca`` (see
            :func:`register_attention`); a class; or a function ``(channels, **arguments) ->
            nn.Module``. The module must map ``(N, C, *spatial)`` to the same shape. A new one is
            built for each site, on the site's device and in its dtype.
        min_channels: attend only sites with at least this many channels: of the convolution's
            output or, for other values of ``placement``, at that place. 128 by default; with
            ``replace`` the default is 1, that is, all sites.
        placement: ``conv``: after each convolution; ``norm``: after the norm that follows it; or
            in residual blocks, as in the figures of the SENet paper: ``residual``: at the end of
            the branch, before the addition; ``pre``: before the branch; ``post``: after the block;
            ``identity``: on the shortcut.
        replace: replace the built-in attention of the network (SE, ECA, CBAM and similar), and
            attend nothing else. Built-in attention is recognized by its forward, or registered by
            :func:`~composer_attn.register_existing_attention`. Its parameters are removed from the
            optimizers; :func:`detach_attention` restores it.
        include: glob pattern(s) of module names to attend, such as ``'layer4.*'``; all by default.
            A leading ``module.`` is ignored.
        exclude: glob pattern(s) of module names to pass over.
        filter_fn: ``filter_fn(name, module) -> bool``, called for each remaining module to attend.
        optimizers: the optimizer(s) already built for the model. New parameters are added in place
            to the parameter group that holds the weights of their convolution (or block). An
            existing optimizer that is not passed never trains them.
        param_group: index of the one group that all new parameters join instead, counted over the
            groups of all optimizers in order; for a frozen backbone, whose weights are in none.
        arguments: the attention's arguments besides the channels, by name.

    Returns:
        The plan that was applied; print it to see every candidate, and why others were passed over.

    Raises:
        ArgumentError: an argument is invalid, there is no attention of that name, it rejects its
            arguments, or it does not preserve the shape of its input.
        PatternError: a pattern matches no candidate.
        PlacementError: no residual block was found in the network; or, with ``replace``, no
            built-in attention.
        ModelError: the model is wrapped, compiled or scripted, or a site cannot be attended.
        OptimizerError: a chosen convolution's weight is in none of the optimizers.
        In each case model and optimizers are unchanged.

    Warns:
        NothingAttendedWarning: nothing was chosen.

    Example:
        >>> import torch
        >>> from composer_attn import apply_attention
        >>> class Gate(torch.nn.Module):
        ...     def __init__(self, channels, kernel_size=1):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(channels, channels, kernel_size, padding="same")
        ...     def forward(self, x):
        ...         return x * self.conv(x).sigmoid()
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> print(apply_attention(model, Gate, kernel_size=3))
        Gate: 1 of 1 candidates chosen, 147,584 parameters added
        site  kind    channels  parameters  chosen
        0     Conv2d  128       147,584     yes
    """
    return attend_by(attention, model, arguments)


@overload
def plan_attention(
    model: nn.Module,
    attention: Attention,
    *,
    example: Example = None,
    **keywords: Unpack[AnySurgery],
) -> SurgeryPlan: ...


@overload
def plan_attention(
    model: nn.Module, attention: Attention, *, example: Example = None, **arguments: Any
) -> SurgeryPlan: ...


@signed(AnySurgery, *DEFAULTS, free=True)
def plan_attention(
    model: nn.Module, attention: Attention, *, example: Example = None, **arguments: Any
) -> SurgeryPlan:
    """Return the plan of :func:`apply_attention` with the same arguments, changing nothing.

    Args:
        model: any network. Arguments that are not listed here are those of
            :func:`apply_attention`.
        attention: see :func:`apply_attention`.
        example: an example input, a tensor or a tuple of the forward's positional arguments. Each
            site of the plan then has a :class:`~composer_attn.surgery.SiteCost` (spatial size,
            multiply-accumulates, activations saved for backward, shares of the total) and notes
            (called several times, never called, one position only, a prediction layer), and the
            plan has the network's totals, ``plain`` and ``attended``. A copy of the model runs
            twice in evaluation mode on fake tensors, which take no memory, or on real ones if the
            forward depends on values (detection). Otherwise the example's values do not matter.
        arguments: see :func:`apply_attention`.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: whatever :func:`apply_attention` would raise.
        ArgumentError: the model's forward fails on the example; the message states what was given
            and what the first convolution expects.
        ModelError: the model works on the example, but fails once it is attended.

    Example:
        >>> import torch
        >>> from composer_attn import plan_attention
        >>> example = torch.empty(8, 3, 34, 34)
        >>> plan = plan_attention(torch.nn.Conv2d(3, 256, 3), "squeeze_excite", example=example)
        >>> plan.sites[0].cost.sizes, plan.attended.macs - plan.plain.macs
        (((32, 32),), 262144)
    """
    return plan_by(attention, model, example, arguments)


def attend_by(attention: Attention, model: nn.Module, keywords: dict[str, Any]) -> SurgeryPlan:
    """Apply an attention for a public function, one stack frame below it (for the warning)."""
    recipe, selection, trained = _prepare(attention, keywords)
    return warn_if_nothing(apply_surgery(model, recipe, selection, **trained))


def plan_by(
    attention: Attention, model: nn.Module, example: Example, keywords: dict[str, Any]
) -> SurgeryPlan:
    """Plan an attention for a public function."""
    recipe, selection, trained = _prepare(attention, keywords)
    return plan_surgery(model, recipe, selection, **trained, example=example)


def _prepare(
    attention: Attention, keywords: dict[str, Any]
) -> tuple[Recipe, Selection, dict[str, Any]]:
    sites, trained, arguments = split(keywords)
    recipe = Recipe(find_attention(attention), arguments)
    recipe.check_names((*SITES, *TRAINED))
    return recipe, Selection(**sites), trained
