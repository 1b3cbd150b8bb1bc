"""Optimizers, with parameter groups with their own arguments or no decay, and schedulers."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from composer_attn.errors import ArgumentError
from composer_attn.runs.components.parts import ATTENTION, parameters_of
from composer_attn.runs.components.registry import OPTIMIZERS, SCHEDULERS
from composer_attn.runs.config.config_errors import unknown

# The values in ``no_decay``. Attention does not exist yet when the optimizer is built: its
# parameters join one of the groups later, see ``attention_group``.
NO_DECAY = ("bias", "norm", "attention")


def build_optimizer(model: nn.Module, section: dict[str, Any]) -> Optimizer:
    """Build the optimizer of a section for all parameters of a model.

    Args:
        model: the network, before surgery.
        section: ``{name, lr, ...}``; ``no_decay: [bias, norm, attention]`` puts such parameters
            into groups with a weight decay of 0; ``groups: {classifier: {lr: 0.1}}`` sets arguments
            for parts of a network (:func:`~composer_attn.runs.components.parts.parameters_of`),
            where the first part that contains a parameter applies.

    Raises:
        ArgumentError: ``no_decay`` or ``groups`` is invalid.
        PatternError: a pattern in ``groups`` matches no parameter.
    """
    arguments = {k: v for k, v in section.items() if k not in ("name", "no_decay", "groups")}
    build = OPTIMIZERS.table[section["name"]]
    if len(_layout(section)) == 1:
        return build(model.parameters(), **arguments)
    exempt = {id(p) for p in _exempt(model, _kinds(section))}
    part_of = {
        id(p): part
        for part in reversed(_groups(section))
        if part != ATTENTION
        for p in parameters_of(model, part)
    }
    params: dict[tuple[str, bool], list[nn.Parameter]] = {key: [] for key in _layout(section)}
    for p in model.parameters():
        params[part_of.get(id(p), ""), id(p) in exempt].append(p)
    return build([_group(section, *key, found) for key, found in params.items()], **arguments)


def check_groups(section: dict[str, Any]) -> None:
    """Check that the optimizer accepts the arguments of a section's groups.

    Raises:
        ArgumentError: it does not.
    """
    own = inspect.signature(OPTIMIZERS.table[section["name"]]).parameters
    valid = [name for name in own if name not in ("params", "foreach", "fused", "differentiable")]
    for part, arguments in _groups(section).items():
        if not isinstance(arguments, Mapping) or not arguments:
            raise ArgumentError(f"groups.{part} must be {{lr: ..., ...}}; got {arguments!r}")
        for name in arguments:
            if name not in valid:
                raise ArgumentError(f"groups.{part}: {unknown('argument', name, valid)}")


def build_scheduler(section: dict[str, Any] | None) -> Any:
    """Build the scheduler of a section ``{name, ...}``; ``None`` is a constant learning rate."""
    if section is None:
        return None
    arguments = dict(section)
    return SCHEDULERS.table[arguments.pop("name")](**arguments)


def attention_group(section: dict[str, Any]) -> int | None:
    """Return the index of the parameter group for attention, or ``None`` for that of its site."""
    part, spared = ATTENTION * (ATTENTION in _groups(section)), ATTENTION in _kinds(section)
    return _layout(section).index((part, spared)) if part or spared else None


def _layout(section: dict[str, Any]) -> list[tuple[str, bool]]:
    """List the groups by (part, whether exempt from decay); part ``""`` is all other parameters."""
    spared = (False, True) if _kinds(section) else (False,)
    return [(part, exempt) for part in ("", *_groups(section)) for exempt in spared]


def _group(section: dict[str, Any], part: str, exempt: bool, params: list) -> dict[str, Any]:
    own = dict(_groups(section)[part]) if part else {}
    return {"params": params, **own, **({"weight_decay": 0.0} if exempt else {})}


def _groups(section: dict[str, Any]) -> dict[str, Any]:
    groups = section.get("groups") or {}
    if not isinstance(groups, Mapping) or not all(isinstance(part, str) for part in groups):
        raise ArgumentError(
            "groups must be {attention: {lr: ...}, classifier: {...}, layer4.*: {...}}, or the "
            f"like; got {groups!r}"
        )
    return dict(groups)


def _kinds(section: dict[str, Any]) -> list[str]:
    kinds = section.get("no_decay") or []
    if not isinstance(kinds, list) or not all(kind in NO_DECAY for kind in kinds):
        raise ArgumentError(
            f"no_decay must be a list of any of {', '.join(NO_DECAY)}; got {kinds!r}"
        )
    return kinds


def _exempt(model: nn.Module, kinds: list[str]) -> list[nn.Parameter]:
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    found = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, norms)
            if ("norm" in kinds and is_norm) or ("bias" in kinds and name == "bias"):
                found.append(parameter)
    return found
