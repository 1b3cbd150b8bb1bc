"""Update live optimizers on surgery: add new parameters to their groups, remove dropped ones.

Groups are changed in place: schedulers keep one learning rate per group and reject or ignore groups
added later, and wrappers such as SAM share the group objects with the optimizer they wrap.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from composer_attn.errors import OptimizerError, first_few
from composer_attn.surgery.attend import CHILD
from composer_attn.surgery.optimizer_states import (
    fill_state,
    keep_state,
    keeps_fused_momentum,
    take_up_state,
)
from composer_attn.surgery.stand_ins import Place

Optimizers = Optimizer | Iterable[Optimizer] | None

# The entries of a group that have one item per parameter.
_LISTS = ("params", "param_names")

# These lay out their parameters at construction and would never update any added later.
_FIXED_PARAMETERS = frozenset({"LBFGS", "ZeroRedundancyOptimizer"})


@dataclass(frozen=True)
class Home:
    """The parameter group that a site's new parameters join, and their name prefix in it."""

    optimizer: Optimizer
    group: dict
    prefix: str


def as_optimizers(optimizers: Optimizers) -> list[Optimizer]:
    """Return one or several optimizers as a list, checked to accept new parameters.

    Raises:
        OptimizerError: one is not an optimizer, or cannot take parameters after construction.
    """
    if optimizers is None:
        return []
    found = [optimizers] if not isinstance(optimizers, Iterable) else list(optimizers)
    for optimizer in found:
        name = type(optimizer).__name__
        if not isinstance(optimizer, Optimizer):
            raise OptimizerError(
                f"optimizers must be a torch.optim.Optimizer or several of them; got a {name}"
            )
        if any(cls.__name__ in _FIXED_PARAMETERS for cls in type(optimizer).__mro__):
            raise OptimizerError(
                f"{name} never updates parameters added after it was built: "
                f"apply the surgery first, then build {name} from model.parameters()"
            )
    return found


def find_homes(
    model: nn.Module,
    owners: dict[str, str],
    optimizers: list[Optimizer],
    param_group: int | None,
) -> dict[str, list[Home]]:
    """Return, for each site, the groups that its new parameters join.

    Args:
        model: the network.
        owners: for each site to attend, the name of the module whose parameter groups its new
            parameters join.
        optimizers: live optimizers; if there are none, no site has a home.
        param_group: index of the one group that all parameters join, counted over the groups of all
            optimizers in order; ``None`` for the groups that hold the owner's parameters.

    Raises:
        OptimizerError: there is no such group, or an owner's parameters are in none.
    """
    groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    if param_group is not None:
        _check_index(param_group, len(groups))
    if not optimizers:
        return {name: [] for name in owners}
    places = _places(groups)
    homes = {name: _own_homes(model, name, owner, places) for name, owner in owners.items()}
    if param_group is not None:
        optimizer, group = groups[param_group]
        for name, own in homes.items():
            prefix = own[0].prefix if own else f"{name}." if name else ""
            homes[name] = [Home(optimizer, group, prefix)]
    lost = [name for name, found in homes.items() if not found]
    if lost:
        raise OptimizerError(
            f"the weights of {len(lost)} sites are in none of the optimizers: "
            f"{first_few(lost, number=5)}. Pass the optimizer that holds them, or name the group "
            f"that all new parameters join: param_group=0 to {len(groups) - 1}"
        )
    _check_momentum(home for found in homes.values() for home in found)
    return homes


def join(home: Home, attention: nn.Module) -> None:
    """Add an attention's parameters to a group."""
    for name, parameter in attention.named_parameters():
        home.group["params"].append(parameter)
        if "param_names" in home.group:
            home.group["param_names"].append(f"{home.prefix}{CHILD}.{name}")
    fill_state(home.optimizer, home.group, list(attention.parameters()))


def restorer(optimizers: Iterable[Optimizer]) -> Callable[[], None]:
    """Return a function that restores the present groups and states of optimizers."""
    groups = [
        (group[key], list(group[key]))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for key in _LISTS
        if key in group
    ]
    states = [(optimizer.state, dict(optimizer.state)) for optimizer in optimizers]

    def restore():
        for held, before in groups:
            held[:] = before
        for state, before in states:
            state.clear()
            state.update(before)

    return restore


def leave(
    optimizers: Iterable[Optimizer], module: nn.Module, model: nn.Module
) -> tuple[Place, ...]:
    """Remove a module's parameters from all parameter groups and optimizer states.

    Args:
        optimizers: live optimizers.
        module: the module that was removed.
        model: the network it was removed from; parameters that are still in use there are kept.

    Returns:
        The former positions of the parameters, for :func:`rejoin`.
    """
    staying = {id(parameter) for parameter in model.parameters()}
    named = module.named_parameters()
    dropped = {id(parameter): name for name, parameter in named if id(parameter) not in staying}
    places = []
    for number, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.param_groups):
            found = [i for i, p in enumerate(group["params"]) if id(p) in dropped]
            for i in found:
                known_as = group["param_names"][i] if "param_names" in group else None
                places.append(Place(dropped[id(group["params"][i])], number, index, i, known_as))
            for key in _LISTS:
                if key in group:
                    group[key][:] = [v for i, v in enumerate(group[key]) if i not in found]
        for parameter in [p for p in optimizer.state if id(p) in dropped]:
            del optimizer.state[parameter]
    return tuple(places)


def set_aside(
    optimizers: Iterable[Optimizer], module: nn.Module, model: nn.Module
) -> tuple[Place, ...]:
    """Do as :func:`leave` does, and keep the states for :func:`rejoin`."""
    held = list(optimizers)
    parameters = list(module.parameters())
    for optimizer in held:
        keep_state(optimizer, parameters)
    return leave(held, module, model)


def places_of(optimizers: Iterable[Optimizer], module: nn.Module) -> tuple[Place, ...]:
    """Return the positions of a module's parameters in optimizers, last of each group first."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return tuple(
        Place(names[id(parameter)], number, index, position + 1, None)
        for number, optimizer in enumerate(optimizers)
        for index, group in enumerate(optimizer.param_groups)
        for position, parameter in reversed(list(enumerate(group["params"])))
        if id(parameter) in names
    )


def rejoin(optimizers: list[Optimizer], module: nn.Module, places: Iterable[Place]) -> None:
    """Put parameters back where :func:`leave` found them, where that group still exists.

    An optimizer from which :func:`set_aside` removed a parameter takes up its state again.
    """
    parameters = dict(module.named_parameters())
    for place in places:
        groups = [o.param_groups for o in optimizers][place.optimizer : place.optimizer + 1]
        for group in groups[0][place.group : place.group + 1] if groups else ():
            parameter = parameters[place.parameter]
            if any(parameter is held for held in group["params"]):
                continue
            group["params"].insert(place.position, parameter)
            if "param_names" in group:
                group["param_names"].insert(place.position, place.known_as or place.parameter)
            take_up_state(optimizers[place.optimizer], group, parameter)


def _check_index(param_group: object, groups: int) -> None:
    if isinstance(param_group, bool) or not isinstance(param_group, int):
        raise OptimizerError(f"param_group must be the index of a group; got {param_group!r}")
    if not groups:
        raise OptimizerError("param_group names a group of an optimizer: pass optimizers= too")
    if not 0 <= param_group < groups:
        raise OptimizerError(f"param_group must be 0 to {groups - 1}; got {param_group}")


def _places(groups: list[tuple[Optimizer, dict]]) -> dict[int, list[tuple[Optimizer, dict, int]]]:
    """Map parameter ids to their positions; groups shared by two optimizers count once."""
    places: dict[int, list] = {}
    seen = set()
    for optimizer, group in groups:
        if id(group["params"]) in seen:
            continue
        seen.add(id(group["params"]))
        for index, parameter in enumerate(group["params"]):
            places.setdefault(id(parameter), []).append((optimizer, group, index))
    return places


def _own_homes(model: nn.Module, name: str, owner: str, places: dict) -> list[Home]:
    """Return the groups that hold an owner's weight or, failing that, another parameter of it."""
    named = dict(model.get_submodule(owner).named_parameters(prefix=owner))
    order = sorted(named, key=lambda full: full.removeprefix(f"{owner}.") != "weight")
    for full in order:
        found = places.get(id(named[full]))
        if found:
            return [Home(o, g, _prefix(name, full, g, index)) for o, g, index in found]
    return []


def _prefix(name: str, full: str, group: dict, index: int) -> str:
    """Return a site's prefix as the optimizer names it, for a larger model or for a part of it."""
    prefix = f"{name}." if name else ""
    known = group["param_names"][index] if "param_names" in group else full
    if known.endswith(full):
        return known.removesuffix(full) + prefix
    return prefix.removeprefix(full.removesuffix(known)) if full.endswith(known) else prefix


def _check_momentum(homes: Iterable[Home]) -> None:
    """Reject optimizers whose first step on new parameters would differ from SGD's.

    From a buffer of zeros the step is ``(1 - dampening) grad``; SGD's own first step is ``grad``.
    """
    for home in homes:
        dampening = home.group.get("dampening", 0)
        if dampening and keeps_fused_momentum(home.optimizer, home.group):
            raise OptimizerError(
                f"SGD(fused=True, dampening={dampening}) that has stepped cannot take new "
                "parameters: apply the surgery before its first step, or build it with fused=False"
            )
