"""The state that optimizers hold of parameters which a surgery adds, removes or restores."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# What optimizers knew of parameters that may come back. It belongs to this very optimizer: another
# one, even of the same class, may expect other entries.
_kept: WeakKeyDictionary[Optimizer, dict[nn.Parameter, dict]] = WeakKeyDictionary()


def keep_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Remember an optimizer's state of parameters that are about to leave it."""
    known = {p: optimizer.state[p] for p in parameters if p in optimizer.state}
    _kept.setdefault(optimizer, {}).update(known)


def take_up_state(optimizer: Optimizer, group: dict, parameter: nn.Parameter) -> None:
    """Give a parameter that has come back the state that was kept, or else a new one."""
    state = _kept.get(optimizer, {}).pop(parameter, None)
    if state is None:
        fill_state(optimizer, group, [parameter])
        return
    for key, value in state.items():
        # The network may have moved in the meantime; counters of steps stay where they are.
        if isinstance(value, Tensor) and value.shape == parameter.shape and parameter.dim():
            state[key] = value.to(parameter.device)
    optimizer.state[parameter] = state


def fill_state(optimizer: Optimizer, group: dict, parameters: list[nn.Parameter]) -> None:
    """Create the state that an optimizer expects parameters to have and never creates later.

    Adagrad is the only optimizer of torch that creates its state at construction. SGD's fused
    kernel takes momentum buffers for all parameters or, at its first step, for none.
    """
    if isinstance(optimizer, torch.optim.Adagrad):
        arguments = {key: group[key] for key in optimizer.defaults}
        optimizer.state.update(torch.optim.Adagrad(parameters, **arguments).state)
    elif keeps_fused_momentum(optimizer, group):
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def keeps_fused_momentum(optimizer: Optimizer, group: dict) -> bool:
    """Return whether a group's parameters have momentum buffers that a fused kernel reads."""
    if not isinstance(optimizer, torch.optim.SGD) or not (group["fused"] and group["momentum"]):
        return False
    return any(
        optimizer.state[parameter].get("momentum_buffer") is not None
        for parameter in group["params"]
        if parameter in optimizer.state
    )
