"""Everything that surgery could change, even in cyclic networks; and how to run them."""

import warnings
from collections.abc import Iterator

import torch
from torch import nn

from tests import snapshots

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def seed(number: int) -> None:
    """Seed the CPU's generator alone; torch.manual_seed records a stack for devices each time."""
    torch.default_generator.manual_seed(number)


def paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk all paths to all modules, but never twice through the same module."""

    def visit(name, module, above):
        yield name, module
        for child_name, child in module._modules.items():
            if child is not None and child not in above:
                inner = f"{name}.{child_name}" if name else child_name
                yield from visit(inner, child, (*above, child))

    yield from visit("", model, (model,))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, without those that are not initialized yet."""
    held = [*model.named_parameters(), *model.named_buffers()]
    return {n: t for n, t in held if not isinstance(t, nn.parameter.UninitializedTensorMixin)}


def of_model(model: nn.Module) -> list:
    """Record the same as tests/snapshots.py, which does not terminate on cyclic networks."""
    modules = [
        (
            name,
            id(module),
            type(module),
            list(vars(module)),
            [(child, id(held)) for child, held in module._modules.items()],
            module.training,
            [list(getattr(module, hooks).values()) for hooks in _HOOKS],
        )
        for name, module in paths(model)
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return [modules, parameters, [(n, snapshots.frozen(t)) for n, t in tensors(model).items()]]


def of_all(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list:
    return [of_model(model), *map(snapshots.of_optimizer, optimizers), torch.get_rng_state()]


def same(before: list, after: list) -> bool:
    """Compare two snapshots; the last item of each is a tensor."""
    return before[:-1] == after[:-1] and torch.equal(before[-1], after[-1])


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run a network with the same random numbers each time, without changing its buffers."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    seed(2)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        y = model(x)
        for buffer, value in buffers:
            buffer.resize_(value.shape).copy_(value)
    return y


def runs(model: nn.Module, x: torch.Tensor) -> bool:
    """Return whether a network runs at all before the surgery."""
    try:
        return bool(output(model, x).isfinite().all())
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return False
