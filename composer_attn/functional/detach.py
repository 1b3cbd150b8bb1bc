"""Remove attention from a network: added attention, exactly, or built-in attention."""

from itertools import chain
from typing import cast

from torch import nn
from torch.optim import Optimizer

from composer_attn.errors import ModelError, PlacementError
from composer_attn.fusion.fuse import temporarily_unfused, unfuse
from composer_attn.surgery.attend import (
    attention_of,
    detach,
    find_attended,
    is_extended_further,
)
from composer_attn.surgery.conversion import convert
from composer_attn.surgery.fold_methods import allow_folding
from composer_attn.surgery.names import walk
from composer_attn.surgery.optimizers import (
    Optimizers,
    as_optimizers,
    leave,
    places_of,
    rejoin,
)
from composer_attn.surgery.orphans import find_orphans
from composer_attn.surgery.selection import Selection, select
from composer_attn.surgery.stand_ins import (
    Place,
    Replacement,
    is_replacement,
    is_shortcut,
    split_name,
    vacate,
)
from composer_attn.surgery.validation import check_model


def detach_all(model: nn.Module, optimizers: Optimizers = None) -> dict[str, nn.Module]:
    """Undo every surgery on a model; see :func:`composer_attn.functional.detach_attention`."""
    check_model(model, orphans=True)
    found_optimizers = as_optimizers(optimizers)
    bring_back = unfuse(model)
    attended = find_attended(model)
    covered = [name for name, m in attended.items() if is_extended_further(m)]
    if covered:
        bring_back()
        raise ModelError(
            f"the class of {', '.join(covered)} was extended after the surgery (by a "
            "parametrization, or a wrapper): undo that first, then detach"
        )
    # Orphans keep the class that other code gave them, and only lose the attention.
    sites: dict[str, nn.Module] = {**attended, **find_orphans(model)}
    attentions = {name: attention_of(module) for name, module in sites.items()}
    # In reverse order, so that parameters return to their original positions in the optimizers.
    for name, module in reversed(sites.items()):
        detach(module)
        places = leave(found_optimizers, attentions[name], model)
        if is_replacement(module):
            _bring_back(model, name, attentions[name], found_optimizers, places)
    stand_ins = (name for name, m in walk(model) if is_shortcut(m) or is_replacement(m))
    for slot in [split_name(name) for name in stand_ins]:
        vacate(model, slot)
    allow_folding(model)
    return attentions


def remove_all(
    model: nn.Module, selection: Selection, optimizers: Optimizers = None
) -> dict[str, nn.Module]:
    """Remove built-in attention; see :func:`composer_attn.functional.remove_attention`."""
    check_model(model)
    live = as_optimizers(optimizers)
    try:
        candidates = [candidate for candidate, reason in select(model, selection) if not reason]
    except PlacementError:
        return {}
    # The module of a site that can be replaced and is not attended yet is a Replacement.
    removed = {
        candidate.name: cast(Replacement, candidate.module).kept.module for candidate in candidates
    }
    with temporarily_unfused(model):
        for candidate in candidates:
            for parent, child in candidate.slots:
                identity = nn.Identity().train(removed[candidate.name].training)
                model.get_submodule(parent)._modules[child] = identity
    for module in removed.values():
        leave(live, module, model)
    return removed


def _bring_back(
    model: nn.Module,
    name: str,
    attention: nn.Module,
    optimizers: list[Optimizer],
    places: tuple[Place, ...],
) -> None:
    """Prepare a replaced built-in attention for its restoration: device, mode, optimizers."""
    replacement = cast(Replacement, model.get_submodule(name))  # checked by the caller
    kept, parent = replacement.kept, model.get_submodule(split_name(name)[0])
    like = next(chain(attention.parameters(), parent.parameters(), model.parameters()), None)
    if like is not None:
        convert(kept.module, like.device, like.dtype)
    kept.module.train(replacement.training)
    if not places and not any(True for _ in attention.parameters()):
        # The added attention had no parameters: use the positions of its parent's weights.
        places = places_of(optimizers, parent) or places_of(optimizers, model)
    if not places:  # the optimizers passed, if any, do not train this network
        return
    if not kept.places:  # they were built after the surgery
        names = [name for name, _ in kept.module.named_parameters()]
        kept.places = tuple(
            places[0]._replace(parameter=name, position=places[0].position + i, known_as=None)
            for i, name in enumerate(names)
        )
    rejoin(optimizers, kept.module, kept.places)
