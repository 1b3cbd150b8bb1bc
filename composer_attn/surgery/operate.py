"""Plan, then act: every check before the first change, and all of the changes or none."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache

from torch import nn
from torch.optim import Optimizer

from composer_attn.errors import ArgumentError, ModelError, PlacementError
from composer_attn.surgery.attend import (
    CHILD,
    attend,
    attended_class,
    detach,
    is_attended,
    is_extended_further,
)
from composer_attn.surgery.example import Example
from composer_attn.surgery.measure import measured
from composer_attn.surgery.names import walk
from composer_attn.surgery.optimizers import (
    Home,
    Optimizers,
    as_optimizers,
    find_homes,
    join,
    leave,
    rejoin,
    restorer,
)
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.points import ATTENDED_ALREADY, Point
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.select import Selection, select
from composer_attn.surgery.slots import (
    Place,
    is_replacement,
    is_shortcut,
    occupy,
    split_name,
    vacate,
)

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
    recipe: Recipe,
    selection: Selection,
    optimizers: Optimizers = None,
    param_group: int | None = None,
    example: Example = None,
) -> SurgeryPlan:
    """Work out what :func:`operate` would do, and everything that would stop it; change nothing.

    With an example input, also what it would cost: see :func:`measured`.
    """
    plan = _prepare(model, recipe, selection, optimizers, param_group)[0]
    if example is None:
        return plan
    chosen = {site.name for site in plan.chosen}
    again = replace(selection, filter_fn=lambda name, _: name in chosen)
    return measured(plan, model, example, lambda copy: operate(copy, recipe, again))


def operate(
    model: nn.Module,
    recipe: Recipe,
    selection: Selection,
    optimizers: Optimizers = None,
    param_group: int | None = None,
) -> SurgeryPlan:
    """Attend the selected sites of a model in place.

    Args:
        model: the network.
        recipe: builds the attentions.
        selection: which sites.
        optimizers: live optimizers that the new parameters join.
        param_group: the group that all new parameters join; see :func:`find_homes`.

    Returns:
        The plan that was carried out.

    Raises:
        ArgumentError, PatternError, ModelError, OptimizerError: nothing was changed.
    """
    plan, sites, homes = _prepare(model, recipe, selection, optimizers, param_group)
    attentions = {point.name: _build(model, recipe, point) for point in sites}
    live = as_optimizers(optimizers)
    with ExitStack() as undo:
        undo.callback(restorer(live))
        for point in sites:
            attention = attentions[point.name]
            undo.callback(detach, point.module)
            attend(point.module, attention, point.side)
            for slot in point.slots:
                undo.callback(vacate, model, slot)
                occupy(model, slot, point.module)
            if is_replacement(point.module):
                kept = point.module.kept
                kept.places = leave(live, kept.module, model)
            for home in homes[point.name]:
                join(home, attention)
        undo.pop_all()
    return plan


def find_attended(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attended modules of a model by name; a shared module comes once."""
    return {name: module for name, module in model.named_modules() if is_attended(module)}


def detach_all(model: nn.Module, optimizers: Optimizers = None) -> dict[str, nn.Module]:
    """Undo every surgery on a model; see :func:`composer_attn.functional.detach_attention`."""
    check_model(model)
    found_optimizers = as_optimizers(optimizers)
    sites = find_attended(model)
    covered = [name for name, m in sites.items() if is_extended_further(m)]
    if covered:
        raise ModelError(
            f"the class of {', '.join(covered)} was extended after the surgery (by a "
            "parametrization, or a wrapper): undo that first, then detach"
        )
    attentions = {name: module._modules[CHILD] for name, module in sites.items()}
    # The last first: what an optimizer held goes back to where it was before the first.
    for name, module in reversed(sites.items()):
        detach(module)
        places = leave(found_optimizers, attentions[name], model)
        if is_replacement(module):
            _bring_back(module, attentions[name], found_optimizers, places)
    stand_ins = (name for name, m in walk(model) if is_shortcut(m) or is_replacement(m))
    for slot in [split_name(name) for name in stand_ins]:
        vacate(model, slot)
    return attentions


def remove_all(
    model: nn.Module, selection: Selection, optimizers: Optimizers = None
) -> dict[str, nn.Module]:
    """Take out what a network came with; see :func:`composer_attn.functional.remove_attention`."""
    check_model(model)
    live = as_optimizers(optimizers)
    try:
        points = [point for point, reason in select(model, selection) if not reason]
    except PlacementError:
        return {}
    for point in points:
        for parent, child in point.slots:
            identity = nn.Identity().train(point.module.kept.module.training)
            model.get_submodule(parent)._modules[child] = identity
    removed = {point.name: point.module.kept.module for point in points}
    for module in removed.values():
        leave(live, module, model)
    return removed


def _bring_back(
    replacement: nn.Module,
    attention: nn.Module,
    optimizers: list[Optimizer],
    places: tuple[Place, ...],
) -> None:
    """Ready the attention that a network came with to be where ours was until now."""
    kept = replacement.kept
    parameter = next(attention.parameters())
    kept.module.to(parameter.device, parameter.dtype).train(replacement.training)
    if not places:  # the optimizers passed, if any, do not train this network
        return
    if not kept.places:  # they were built after the surgery
        names = [name for name, _ in kept.module.named_parameters()]
        kept.places = tuple(
            places[0]._replace(parameter=name, position=places[0].position + i, known_as=None)
            for i, name in enumerate(names)
        )
    rejoin(optimizers, kept.module, kept.places)


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
    recipe: Recipe,
    selection: Selection,
    optimizers: Optimizers,
    param_group: int | None,
) -> tuple[SurgeryPlan, list[Point], dict[str, list[Home]]]:
    check_model(model)
    live = as_optimizers(optimizers)
    recipe.check()  # wrong arguments: an error even where no site is chosen
    selected = select(model, selection)
    sites = [point for point, reason in selected if not reason]
    recipe.check_matches(p.names for p, reason in selected if reason in ("", ATTENDED_ALREADY))
    _check_sites(sites, model)
    owners = {point.name: point.owner for point in sites}
    homes = find_homes(model, owners, live, param_group)
    count = lru_cache(lambda c, names: _count(recipe.build(c, names, device="meta")))
    plan = SurgeryPlan(
        attention=recipe.attention.__name__,
        sites=tuple(_site(point, reason, count) for point, reason in selected),
    )
    return plan, sites, homes


def _site(point: Point, reason: str, count: Callable[[int, tuple[str, ...]], int]) -> Site:
    parameters = 0 if reason else count(point.channels, point.names)
    replaced = is_replacement(point.module) and not is_attended(point.module)
    kind = type(point.module.kept.module if replaced else point.module).__name__
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


def _build(model: nn.Module, recipe: Recipe, point: Point) -> nn.Module:
    """Build the attention of a site like its owner: device, dtype, training or evaluation."""
    owner = model.get_submodule(point.owner)
    weight = next(owner.parameters())
    options = {"device": weight.device, "dtype": weight.dtype}
    attention = recipe.build(point.channels, point.names, **options)
    # What can fail, fails before anything has changed.
    attended_class(type(point.module), point.side)
    if point.slots:
        point.module.train(owner.training)
    return attention.train(owner.training)
