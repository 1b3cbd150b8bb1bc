"""Squeeze-and-Excitation on a network of your own."""

from collections.abc import Mapping

from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.functional.common import Example, Filter, Optimizers, Patterns, warn_if_nothing
from composer_attn.surgery import Recipe, Selection, SurgeryPlan, operate, plan_surgery


def apply_squeeze_excite(
    model: nn.Module,
    latent_channels: int | float | Mapping[str, int | float] = 64,
    min_channels: int | None = None,
    *,
    placement: str = "conv",
    replace: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Filter = None,
    start: str = "paper",
    gate: str = "sigmoid",
    squeeze: str = "avg",
    bias: bool = False,
    optimizers: Optimizers = None,
    param_group: int | None = None,
) -> SurgeryPlan:
    """Add Squeeze-and-Excitation after the convolutions of a model, in place.

    Each chosen ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` stays the same object, with the same
    parameters under the same state-dict keys, and scales its output channels by a new child module
    named ``attention``: ``y = s conv(x)``, ``s = gate(W2 relu(W1 mean(conv(x))))`` (`Hu et al.,
    2018 <https://arxiv.org/abs/1709.01507>`_, equations 2 to 4).

    Convolutions inside an attention that the network came with, and attended ones, are passed over;
    applying twice changes nothing. Apply before wrapping in DDP or FSDP, and before compiling.

    Args:
        model: any network.
        latent_channels: width of the hidden layer: a count >= 1, or a fraction of the channels in
            (0, 1); the paper's reduction ratio ``r`` is ``1/r``. ``{pattern: width}`` where it
            differs by stage: the first pattern that matches a site's name counts, and 64 where
            none does.
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
        filter_fn: ``filter_fn(name, module) -> bool``, asked for each remaining
            module to attend.
        start: ``paper``: random layers; ``identity``: scales of exactly 1, so that a pretrained
            network computes what it did before, and learns from there.
        gate: ``sigmoid``, ``hard_sigmoid``, ``tanh`` or ``relu``.
        squeeze: ``avg``, ``max``, or ``none``: no pooling, each position is excited by its own
            channels (the paper's "NoSqueeze").
        bias: whether the linear layers have biases.
        optimizers: the optimizer(s) already built for the model. New parameters join, in place, the
            parameter group that holds their convolution's (or block's) weights. An optimizer that
            exists and is not passed never trains them.
        param_group: index of the one group that all new parameters join instead, counted through
            all optimizers' groups in order; for a frozen backbone, whose weights are in none.

    Returns:
        The plan that was carried out; ``print`` shows every convolution, chosen or why not.

    Raises:
        ArgumentError: an argument is not valid.
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
        >>> from composer_attn import apply_squeeze_excite
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 128, 3), torch.nn.ReLU())
        >>> print(apply_squeeze_excite(model, latent_channels=1 / 16))
        SqueezeExcitation: 1 of 1 candidates chosen, 2,048 parameters added
        site  kind    channels  parameters  chosen
        0     Conv2d  128       2,048       yes
    """
    recipe = _recipe(latent_channels, bias, gate, start, squeeze)
    selection = Selection(min_channels, include, exclude, filter_fn, placement, replace)
    return warn_if_nothing(operate(model, recipe, selection, optimizers, param_group))


def plan_squeeze_excite(
    model: nn.Module,
    latent_channels: int | float | Mapping[str, int | float] = 64,
    min_channels: int | None = None,
    *,
    placement: str = "conv",
    replace: bool = False,
    include: Patterns = None,
    exclude: Patterns = None,
    filter_fn: Filter = None,
    start: str = "paper",
    gate: str = "sigmoid",
    squeeze: str = "avg",
    bias: bool = False,
    optimizers: Optimizers = None,
    param_group: int | None = None,
    example: Example = None,
) -> SurgeryPlan:
    """Work out what :func:`apply_squeeze_excite` would do with the same arguments; touch nothing.

    Args:
        model: any network; the arguments that are not listed here are those of
            :func:`apply_squeeze_excite`.
        example: an input to try, a tensor or a tuple of the forward's positional arguments. Each
            site of the plan then has its :class:`~composer_attn.surgery.SiteCost` (spatial size,
            multiply-accumulates, activations kept for backward, shares of the whole) and notes
            (called several times, never called, at one position, a prediction layer), and the plan
            the network's totals, ``plain`` and ``attended``. A copy runs twice, in evaluation
            mode, on fake tensors, which take no memory; where the forward looks at values
            (detection), on real ones. The values of the example do not matter otherwise.

    Returns:
        The plan.

    Raises:
        ComposerAttnError: whatever :func:`apply_squeeze_excite` would raise.
        ArgumentError: the model's forward fails on the example; the message says what was given,
            and what the first convolution takes.
        ModelError: the model works on the example, but not once it is attended.

    Example:
        >>> import torch
        >>> from composer_attn import plan_squeeze_excite
        >>> plan = plan_squeeze_excite(torch.nn.Conv2d(3, 256, 3))
        >>> len(plan.chosen), plan.parameters
        (1, 32768)

        >>> example = torch.empty(8, 3, 34, 34)
        >>> plan = plan_squeeze_excite(torch.nn.Conv2d(3, 256, 3), example=example)
        >>> plan.sites[0].cost.sizes, plan.attended.macs - plan.plain.macs
        (((32, 32),), 262144)
    """
    recipe = _recipe(latent_channels, bias, gate, start, squeeze)
    selection = Selection(min_channels, include, exclude, filter_fn, placement, replace)
    return plan_surgery(model, recipe, selection, optimizers, param_group, example)


def _recipe(latent_channels, bias, gate, start, squeeze) -> Recipe:
    arguments = {"bias": bias, "gate": gate, "start": start, "squeeze": squeeze}
    return Recipe(SqueezeExcitation, {"latent_channels": latent_channels, **arguments})
