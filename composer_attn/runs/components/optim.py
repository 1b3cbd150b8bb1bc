"""Optimizers, with parameter groups without weight decay, and schedulers."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from composer_attn.errors import ArgumentError
from composer_attn.runs.components.registry import OPTIMIZERS, SCHEDULERS

# The values in ``no_decay``. Attention does not exist yet when the optimizer is built: its
# parameters join the group without weight decay later, see ``attention_group``.
NO_DECAY = ("bias", "norm", "attention")
_NO_DECAY_GROUP = 1


def build_optimizer(model: nn.Module, section: dict[str, Any]) -> Optimizer:
    """Build the optimizer of a section for all parameters of a model.

    Args:
        model: the network, before surgery.
        section: ``{name, lr, ...}``; ``no_decay: [bias, norm, attention]`` puts such parameters
            into a second group with a weight decay of 0.

    Raises:
        ArgumentError: ``no_decay`` has other values.
    """
    arguments = {key: value for key, value in section.items() if key not in ("name", "no_decay")}
    build = OPTIMIZERS.table[section["name"]]
    kinds = _kinds(section)
    if not kinds:
        return build(model.parameters(), **arguments)
    exempt = {id(p) for p in _exempt(model, kinds)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in exempt]},
        {"params": [p for p in model.parameters() if id(p) in exempt], "weight_decay": 0.0},
    ]
    return build(groups, **arguments)


def build_scheduler(section: dict[str, Any] | None) -> Any:
    """Build the scheduler of a section ``{name, ...}``; ``None`` is a constant learning rate."""
    if section is None:
        return None
    arguments = dict(section)
    return SCHEDULERS.table[arguments.pop("name")](**arguments)


def attention_group(section: dict[str, Any]) -> int | None:
    """Return the index of the parameter group for attention, or ``None`` for that of its site."""
    return _NO_DECAY_GROUP if "attention" in _kinds(section) else None


def _kinds(section: dict[str, Any]) -> list[str]:
    kinds = section.get("no_decay") or []
    if not isinstance(kinds, list) or not all(kind in NO_DECAY for kind in kinds):
        raise ArgumentError(
            f"no_decay must be a list of some of {', '.join(NO_DECAY)}; got {kinds!r}"
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
