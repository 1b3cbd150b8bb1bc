"""Any attention on a network of your own: ours by name, or one that you wrote."""

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

    Each chosen ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` stays the same object, with the same
    parameters under the same state-dict keys, and passes its output through a new child module
    named ``attention``. Convolutions inside an attention, of ours or that the network came with,
    and attended ones are passed over; applying twice changes nothing. Apply before wrapping in DDP
    or FSDP, and before compiling.

    Args:
        model: any network.
        attention: a registered name, like ``squeeze_excite`` or ``eca``
            (:func:`register_attention`); or a class, or a function ``(channels, **arguments) ->
            nn.Module``. What it builds maps ``(N, C, *spatial)`` to the same shape. It is built
            anew for each site, and put on the site's device, in its dtype.
        min_channels: attend where there are at least this many channels: of a convolution's
            output, or at the point of another ``placement``. 128 by default, and with ``replace``
            1: whatever is there.
        placement: ``conv``: after each convolution; ``norm``: after the norm that follows it; and
            in residual blocks, as the SENet paper draws them: ``residual``: at the end of the
            branch, before the addition; ``pre``: before the branch; ``post``: after the block;
            ``identity``: on the shortcut.
        replace: put attention where the network has its own, which gives way, and nowhere else:
            SE, ECA, CBAM and their like, known by what their forward does, or by
            :func:`~composer_attn.register_existing_attention`. Its parameters leave the
            optimizers; :func:`detach_attention` brings it back.
        include: glob pattern(s) of module names to attend, like ``'layer4.*'``; all by default. A
            leading ``module.`` makes no difference.
        exclude: glob pattern(s) of module names to pass over.
        filter_fn: ``filter_fn(name, module) -> bool``, asked for each remaining module to attend.
        optimizers: the optimizer(s) already built for the model. New parameters join, in place, the
            parameter group that holds their convolution's (or block's) weights. An optimizer that
            exists and is not passed never trains them.
        param_group: index of the one group that all new parameters join instead, counted through
            all optimizers' groups in order; for a frozen backbone, whose weights are in none.
        arguments: what the attention takes besides the channels, by name.

    Returns:
        The plan that was carried out; ``print`` shows every convolution, chosen or why not.

    Raises:
        ArgumentError: an argument is not valid, there is no attention of that name, it refuses its
            arguments, or does not keep the shape of what it is given.
        PatternError: a pattern matches no candidate.
        PlacementError: the network has no residual block, or none that could be found; or, with
            ``replace``, no attention of its own.
        ModelError: the model is wrapped, compiled or scripted, or a site cannot be attended.
        OptimizerError: a chosen convolution's weight is in none of the optimizers.
        In each case model and optimizers are as they were.

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
    """Work out what :func:`apply_attention` would do with the same arguments; touch nothing.

    Args:
        model: any network; the arguments that are not listed here are those of
            :func:`apply_attention`.
        attention: see :func:`apply_attention`.
        example: an input to try, a tensor or a tuple of the forward's positional arguments. Each
            site of the plan then has its :class:`~composer_attn.surgery.SiteCost` (spatial size,
            multiply-accumulates, activations kept for backward, shares of the whole) and notes
            (called several times, never called, at one position, a prediction layer), and the plan
            the network's totals, ``plain`` and ``attended``. A copy runs twice, in evaluation mode,
            on fake tensors, which take no memory; where the forward looks at values (detection), on
            real ones. The values of the example do not matter otherwise.
        arguments: see :func:`apply_attention`.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: whatever :func:`apply_attention` would raise.
        ArgumentError: the model's forward fails on the example; the message says what was given,
            and what the first convolution takes.
        ModelError: the model works on the example, but not once it is attended.

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
    """Do what a public function was called for, right below it: it is its caller that is warned."""
    recipe, selection, trained = _prepare(attention, keywords)
    return warn_if_nothing(apply_surgery(model, recipe, selection, **trained))


def plan_by(
    attention: Attention, model: nn.Module, example: Example, keywords: dict[str, Any]
) -> SurgeryPlan:
    """Plan what a public function was called for."""
    recipe, selection, trained = _prepare(attention, keywords)
    return plan_surgery(model, recipe, selection, **trained, example=example)


def _prepare(
    attention: Attention, keywords: dict[str, Any]
) -> tuple[Recipe, Selection, dict[str, Any]]:
    sites, trained, arguments = split(keywords)
    recipe = Recipe(find_attention(attention), arguments)
    recipe.check_names((*SITES, *TRAINED))
    return recipe, Selection(**sites), trained
