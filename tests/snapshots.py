"""Everything about a model or an optimizer that a surgery could change, in comparable form."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def frozen(value):
    """Replace tensors by their bytes, so that ``==`` compares bit for bit."""
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(value.shape), value.stride(), value.device, _raw(value))
    if isinstance(value, dict):
        return [(key, frozen(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    return value


def _raw(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        return b""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def of_model(model: nn.Module) -> list:
    """Record objects, classes, attributes, flags, hooks and the state dict, bit for bit."""
    modules = [
        (
            name,
            id(module),
            type(module),
            list(vars(module)),
            list(module._modules),
            module.training,
            [list(getattr(module, hooks).values()) for hooks in _HOOKS],
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return [modules, parameters, frozen(model.state_dict())]


def of_optimizer(optimizer: Optimizer) -> list:
    """Record the groups (which objects, in which order, under which names) and the state."""
    groups = [
        [id(group), id(group["params"])]
        + [(key, [id(p) for p in value] if key == "params" else frozen(value))
           for key, value in group.items()]
        for group in optimizer.param_groups
    ]  # fmt: skip
    state = {id(parameter): frozen(items) for parameter, items in optimizer.state.items()}
    return [groups, state]


def of_all(model: nn.Module, *optimizers: Optimizer) -> list:
    return [of_model(model), *map(of_optimizer, optimizers)]
