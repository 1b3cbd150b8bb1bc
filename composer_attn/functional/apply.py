"""Plan and apply a surgery: all checks come first, then all changes are made or none."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from composer_attn.costs.example import Example
from composer_attn.costs.measure import measured
from composer_attn.fusion.fuse import temporarily_unfused, unfuse
from composer_attn.surgery.attend import CHILD, attend, attended_class, detach, is_attended
from composer_attn.surgery.attention_trial import Trials, Tried, moved
from composer_attn.surgery.feature_maps import batch_dimensions
from composer_attn.surgery.fold_methods import allow_folding, refuse_folding
from composer_attn.surgery.optimizers import (
    Home,
    Optimizers,
    as_optimizers,
    find_homes,
    join,
    restorer,
    set_aside,
)
from composer_attn.surgery.plan import Site, SurgeryPlan
from composer_attn.surgery.recipe import Recipe
from composer_attn.surgery.selection import Selection, select
from composer_attn.surgery.sites import ATTENDED_ALREADY, CandidateSite
from composer_attn.surgery.stand_ins import is_replacement, occupy, vacate
from composer_attn.surgery.untrained import watch
from composer_attn.surgery.validation import check_model, check_sites


def plan_surgery(
    model: nn.Module,
    recipe: Recipe,
    selection: Selection,
    optimizers: Optimizers = None,
    param_group: int | None = None,
    example: Example = None,
) -> SurgeryPlan:
    """Return the plan of what :func:`apply_surgery` would do, or raise its errors.

    Nothing is changed. With an example input the plan includes costs: see :func:`measured`.
    """
    check_model(model)
    bring_back = unfuse(model)
    try:
        plan = _prepare(model, recipe, selection, as_optimizers(optimizers), param_group)[0]
        if example is None:
            return plan
        chosen = {site.name for site in plan.chosen}
        again = replace(selection, filter_fn=lambda name, _: name in chosen)
        return measured(plan, model, example, lambda copy: apply_surgery(copy, recipe, again))
    finally:
        bring_back()


def apply_surgery(
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
        selection: selects the sites.
        optimizers: live optimizers that the new parameters join.
        param_group: the group that all new parameters join; see :func:`find_homes`.

    Returns:
        The plan that was carried out.

    Raises:
        ArgumentError, PatternError, ModelError, OptimizerError: in each case nothing was changed.
    """
    check_model(model)
    live = as_optimizers(optimizers)
    with temporarily_unfused(model):
        plan, sites, homes = _prepare(model, recipe, selection, live, param_group)
        built: set[int] = set()
        attentions = {
            candidate.name: _build(model, recipe, candidate, built) for candidate in sites
        }
        _attend_all(model, sites, attentions, homes, live)
    if not live:
        owners = {p.name: model.get_submodule(p.owner) for p in sites}
        watch({p.name: (p.module, attentions[p.name], owners[p.name]) for p in sites})
    return plan


def _attend_all(
    model: nn.Module,
    sites: list[CandidateSite],
    attentions: dict[str, nn.Module],
    homes: dict[str, list[Home]],
    live: list[Optimizer],
) -> None:
    with ExitStack() as undo:
        undo.callback(restorer(live))
        for candidate in sites:
            attention = attentions[candidate.name]
            undo.callback(detach, candidate.module)
            owner = model.get_submodule(candidate.owner)
            dimensions = batch_dimensions(owner) or batch_dimensions(candidate.module)
            attend(candidate.module, attention, candidate.side, dimensions)
            for slot in candidate.slots:
                undo.callback(vacate, model, slot)
                occupy(model, slot, candidate.module)
            if is_replacement(candidate.module):
                kept = candidate.module.kept
                kept.places = set_aside(live, kept.module, model)
            for home in homes.get(candidate.name, ()):
                join(home, attention)
        undo.callback(allow_folding, model)
        refuse_folding(model)
        undo.pop_all()


def _prepare(
    model: nn.Module,
    recipe: Recipe,
    selection: Selection,
    live: list[Optimizer],
    param_group: int | None,
) -> tuple[SurgeryPlan, list[CandidateSite], dict[str, list[Home]]]:
    recipe.check()  # invalid arguments are an error even if no site is chosen
    selected = select(model, selection)
    sites = [candidate for candidate, reason in selected if not reason]
    recipe.check_matches(p.names for p, reason in selected if reason in ("", ATTENDED_ALREADY))
    check_sites(sites, model)
    trials = Trials(model, recipe)
    tried = {candidate.name: trials.at(candidate) for candidate in sites}
    # An attention without parameters needs no optimizer.
    owners = {
        candidate.name: candidate.owner for candidate in sites if tried[candidate.name].parameters
    }
    homes = find_homes(model, owners, live, param_group)
    kinds = dict.fromkeys(found.kind for found in tried.values())
    plan = SurgeryPlan(
        attention=", ".join(kinds) or recipe.name,
        sites=tuple(
            _site(candidate, _detailed(candidate, reason, trials), tried)
            for candidate, reason in selected
        ),
    )
    return plan, sites, homes


def _detailed(candidate: CandidateSite, reason: str, trials: Trials) -> str:
    """Add to the reason for an attended site whether its attention is the requested one."""
    if reason != ATTENDED_ALREADY:
        return reason
    there = candidate.module._modules[CHILD]
    asked = trials.at(candidate).module
    if type(there) is not type(asked):
        return f"{ATTENDED_ALREADY} by {type(there).__name__}"
    alike = _settings(there) == _settings(asked)
    return ATTENDED_ALREADY if alike else f"{ATTENDED_ALREADY}, with other settings"


def _settings(attention: nn.Module) -> tuple[object, ...]:
    """Return the arguments and size of an attention, to compare two of the same class."""
    kinds = (bool, int, float, str)
    own = {n: v for n, v in vars(attention).items() if n[0] != "_" and isinstance(v, kinds)}
    own.pop("training", None)
    return own, sum(parameter.numel() for parameter in attention.parameters())


def _site(candidate: CandidateSite, reason: str, tried: Mapping[str, Tried]) -> Site:
    parameters = 0 if reason else tried[candidate.name].parameters
    module = candidate.module
    if is_replacement(module) and not is_attended(module):
        module = module.kept.module
    return Site(
        candidate.name,
        type(module).__name__,
        candidate.channels,
        reason,
        parameters,
        candidate.side,
    )


def _build(
    model: nn.Module, recipe: Recipe, candidate: CandidateSite, built: set[int]
) -> nn.Module:
    """Build the attention of a site with its owner's device, dtype and training mode."""
    owner = model.get_submodule(candidate.owner)
    weight = next(owner.parameters())
    attention = recipe.build(candidate.channels, candidate.names, weight.device, weight.dtype)
    attention = moved(attention, weight, model, built)
    # Build the class here, so that any failure occurs before anything is changed.
    attended_class(type(candidate.module), candidate.side)
    if candidate.slots:
        candidate.module.train(owner.training)
    return attention.train(owner.training)
