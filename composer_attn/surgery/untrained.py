"""Detect during training that no optimizer holds the attention that a surgery added.

A surgery cannot look up existing optimizers, as nothing refers to them but the code that built
them. But torch calls a hook after every step of any optimizer, which detects one that updates the
weights of an attended module and not those of its attention.
"""

import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from composer_attn.errors import UntrainedAttentionWarning, first_few
from composer_attn.surgery.attend import CHILD

# By the second step of one optimizer, all others in the training loop have made their first.
_STEPS = 2


@dataclass
class _Site:
    """An attention, its module, and the module whose optimizer should also hold the attention.

    Weak references, so that no network is kept alive.
    """

    name: str
    module: weakref.ref[nn.Module]
    attention: weakref.ref[nn.Module]
    owner: weakref.ref[nn.Module]

    def untrained(self) -> list[nn.Parameter]:
        """List the attention's parameters that have gradients, while it is still in place."""
        module, attention = self.module(), self.attention()
        if module is None or attention is None or module._modules.get(CHILD) is not attention:
            return []
        return [p for p in attention.parameters() if p.requires_grad and p.grad is not None]

    def weights(self) -> list[nn.Parameter]:
        """List the owner's parameters, without those of the attention."""
        owner, attention = self.owner(), self.attention()
        if owner is None or attention is None:
            return []
        own = {id(p) for p in attention.parameters()}
        return [p for p in owner.parameters() if id(p) not in own]


@dataclass(eq=False)
class _Watch:
    """The sites of one surgery, and the number of steps of each optimizer since."""

    sites: list[_Site]
    steps: "weakref.WeakKeyDictionary[Optimizer, int]" = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def is_over(self) -> bool:
        """Return whether the network or its attention no longer exists."""
        return all(site.module() is None or site.attention() is None for site in self.sites)

    def untrained_after_step(self, optimizer: Optimizer) -> list[str] | None:
        """Return the names of sites in no optimizer, or None while that cannot be determined."""
        steps = self.steps[optimizer] = self.steps.get(optimizer, 0) + 1
        if steps != _STEPS:
            return None
        own = _held(optimizer)
        if not any(id(p) in own for site in self.sites for p in site.weights()):
            return None
        held = set().union(*(_held(other) for other in list(self.steps)))
        return [s.name for s in self.sites if any(id(p) not in held for p in s.untrained())]


_watches: list[_Watch] = []
_hooks: list[RemovableHandle] = []


def watch(attended: Mapping[str, tuple[nn.Module, nn.Module, nn.Module]]) -> None:
    """Warn if an optimizer trains the modules of a surgery but not their attention.

    Args:
        attended: for each site by name, the attended module, its attention, and the owner whose
            optimizer should also hold the attention.
    """
    _watches[:] = [earlier for earlier in _watches if not earlier.is_over()]
    sites = [
        _Site(name, *(weakref.ref(module) for module in modules))
        for name, modules in attended.items()
    ]
    if sites:
        _watches.append(_Watch(sites))
    if not _hooks:  # never removed: torch iterates over its hooks while they run
        _hooks.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    for each in list(_watches):
        lost = each.untrained_after_step(optimizer)
        if lost is not None or each.is_over():
            _watches.remove(each)
        if lost:
            _warn(optimizer, lost)


def _held(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _warn(optimizer: Optimizer, names: list[str]) -> None:
    warnings.warn(
        f"{type(optimizer).__name__} trains the network, but not the attention of "
        f"{first_few(names)}, which was added after the optimizer was built: pass it to the "
        "surgery as optimizers=, or build it afterwards",
        UntrainedAttentionWarning,
        stacklevel=4,  # where step was called
    )
