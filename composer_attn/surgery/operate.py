"""Plan, then act: every check before the first change, and all of the changes or none."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache

from torch import nn

from composer_attn.errors import ArgumentError, ModelError
from composer_attn.surgery.attend import (
    CHILD,
    attend,
    attended_class,
    detach,
    is_attended,
    is_extended_further,
)
from composer_attn.surgery.fuse import apart, take_apart
from composer_attn.surgery.names import walk
from composer_attn.surgery.optimizers import (
    Home,
    Optimizers,
    as_optimizers,
    find_homes,
    join,
    leave,
    restorer,
)
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.points import Point
from composer_attn.surgery.select import Selection, select
from composer_attn.surgery.slots import is_shortcut, occupy, split_name, vacate

# Wrappers that took note of the parameters when they were built, and what to do instead.
_WRAPPERS = {
    "DistributedDataParallel": "apply it to the plain model, then wrap in DistributedDataParallel",
    "FullyShardedDataParallel": "apply it to the plain model, then wrap in FSDP",
    "FSDPModule": "apply it to the plain model, then call fully_shard",
    "OptimizedModule": "apply it to the plain model, then call torch.compile",
    "ScriptModule": "apply it to the Python model, then use torch.jit.trace",
}


def plan_surgery(
    model: nn.Module,
    recipe: Callable[..., nn.Module],
    selection: Selection,
    optimizers: Optimizers = None,
    param_group: int | None = None,
) -> SurgeryPlan:
    """Work out what :func:`operate` would do, and everything that would stop it; change nothing."""
    check_model(model)
    bring_back = take_apart(model)
    try:
        return _prepare(model, recipe, selection, optimizers, param_group)[0]
    finally:
        bring_back()


def operate(
    model: nn.Module,
    recipe: Callable[..., nn.Module],
    selection: Selection,
    optimizers: Optimizers = None,
    param_group: int | None = None,
) -> SurgeryPlan:
    """Attend the selected sites of a model in place.

    Args:
        model: the network.
        recipe: ``recipe(channels, device=, dtype=)`` builds an attention.
        selection: which sites.
        optimizers: live optimizers that the new parameters join.
        param_group: the group that all new parameters join; see :func:`find_homes`.

    Returns:
        The plan that was carried out.

    Raises:
        ArgumentError, PatternError, ModelError, OptimizerError: nothing was changed.
    """
    check_model(model)
    with apart(model):
        plan, sites, homes = _prepare(model, recipe, selection, optimizers, param_group)
        attentions = {point.name: _build(model, recipe, point) for point in sites}
        _attend_all(model, sites, attentions, homes)
    return plan


def _attend_all(
    model: nn.Module,
    sites: list[Point],
    attentions: dict[str, nn.Module],
    homes: dict[str, list[Home]],
) -> None:
    with ExitStack() as undo:
        for point in sites:
            attention = attentions[point.name]
            undo.callback(detach, point.module)
            attend(point.module, attention, point.side)
            if point.slot:
                undo.callback(vacate, model, point.slot)
                occupy(model, point.slot, point.module)
            for home in homes[point.name]:
                undo.callback(restorer(home, attention))
                join(home, attention)
        undo.pop_all()


def find_attended(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attended modules of a model by name; a shared module comes once."""
    return {name: module for name, module in model.named_modules() if is_attended(module)}


def detach_all(model: nn.Module, optimizers: Optimizers = None) -> dict[str, nn.Module]:
    """Undo every surgery on a model; see :func:`composer_attn.functional.detach_attention`."""
    check_model(model)
    found_optimizers = as_optimizers(optimizers)
    bring_back = take_apart(model)
    sites = find_attended(model)
    covered = [name for name, m in sites.items() if is_extended_further(m)]
    if covered:
        bring_back()
        raise ModelError(
            f"the class of {', '.join(covered)} was extended after the surgery (by a "
            "parametrization, or a wrapper): undo that first, then detach"
        )
    attentions = {name: module._modules[CHILD] for name, module in sites.items()}
    for name, module in sites.items():
        detach(module)
        leave(found_optimizers, list(attentions[name].parameters()))
    for slot in [split_name(name) for name, module in walk(model) if is_shortcut(module)]:
        vacate(model, slot)
    return attentions


def check_model(model: nn.Module) -> None:
    """Make sure that nothing in a model has already taken note of its parameters or its code.

    Raises:
        ArgumentError: it is no module.
        ModelError: it is wrapped, compiled or scripted, as a whole or in part.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    for name, module in walk(model):
        bases = {cls.__name__ for cls in type(module).__mro__}
        if module._compiled_call_impl is not None:
            bases.add("OptimizedModule")
        for wrapper in bases & set(_WRAPPERS):
            raise ModelError(
                f"{name or 'the model'} is a {wrapper}, on which surgery has no safe effect: "
                f"{_WRAPPERS[wrapper]}"
            )


def _prepare(
    model: nn.Module,
    recipe: Callable[..., nn.Module],
    selection: Selection,
    optimizers: Optimizers,
    param_group: int | None,
) -> tuple[SurgeryPlan, list[Point], dict[str, list[Home]]]:
    check_model(model)
    live = as_optimizers(optimizers)
    kind = type(recipe(1, device="meta"))  # wrong arguments: an error even where no site is chosen
    selected = select(model, selection)
    sites = [point for point, reason in selected if not reason]
    _check_sites(sites, model)
    owners = {point.name: point.owner for point in sites}
    homes = find_homes(model, owners, live, param_group)
    count = lru_cache(lambda channels: _count(recipe(channels, device="meta")))
    plan = SurgeryPlan(
        attention=kind.__name__,
        sites=tuple(_site(point, reason, count) for point, reason in selected),
    )
    return plan, sites, homes


def _site(point: Point, reason: str, count: Callable[[int], int]) -> Site:
    parameters = 0 if reason else count(point.channels)
    kind = type(point.module).__name__
    return Site(point.name, kind, point.channels, reason, parameters, point.side)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _check_sites(sites: list[Point], model: nn.Module) -> None:
    """Refuse chosen sites that cannot be attended, all in one error."""
    troubles = {point.name: _trouble(point, model) for point in sites}
    lines = [f"  {name or 'the model'}: {trouble}" for name, trouble in troubles.items() if trouble]
    if lines:
        raise ModelError(
            "these sites cannot be attended; mend them, or name them in exclude:\n"
            + "\n".join(lines)
        )


def _trouble(point: Point, model: nn.Module) -> str:
    if "forward" in vars(point.module):
        return "its forward was replaced on the instance, which a class cannot extend"
    if isinstance(point.module, nn.Sequential):
        return "a Sequential, which would run an attention as one more of its children"
    if hasattr(point.module, CHILD):
        return f"it has an attribute named {CHILD!r} already"
    parameters = list(model.get_submodule(point.owner).parameters())
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        return "lazy, and not initialized yet: run one forward pass first"
    if not parameters:
        return "it has no parameters, whose device and dtype its attention could share"
    if not parameters[0].is_floating_point():
        return f"its weights are {parameters[0].dtype}, not real floating point"
    return ""


def _build(model: nn.Module, recipe: Callable[..., nn.Module], point: Point) -> nn.Module:
    """Build the attention of a site like its owner: device, dtype, training or evaluation."""
    owner = model.get_submodule(point.owner)
    weight = next(owner.parameters())
    attention = recipe(point.channels, device=weight.device, dtype=weight.dtype)
    # What can fail, fails before anything has changed.
    attended_class(type(point.module), point.side)
    if point.slot:
        point.module.train(owner.training)
    return attention.train(owner.training)
