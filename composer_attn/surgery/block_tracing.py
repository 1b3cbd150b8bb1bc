"""Locate the addition of a residual block by tracing its forward with children as leaves."""

import operator
from collections.abc import Iterable, Iterator

import torch
from torch import fx, nn

from composer_attn.surgery.blocks import Block
from composer_attn.surgery.shallow_trace import trace_children

# Targets of torch.fx nodes that add two tensors.
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


def traced_block(module: nn.Module) -> Block | None:
    """Return the layout of a residual block, or None if the module is not one.

    Raises:
        Exception: whatever the forward raises on symbolic inputs, if it cannot be traced.
    """
    graph = trace_children(module, module.training)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    additions = [node for node in graph.nodes if node.target in ADDITIONS and len(node.args) == 2]
    if not inputs or not additions:
        return None
    addition = additions[-1]
    sides = [list(_back(argument)) for argument in addition.args if isinstance(argument, fx.Node)]
    if len(sides) != 2:
        return None
    if any(path[-1] is not inputs[0] for path in sides):
        return None
    # A pre-activation may precede both sides: it belongs to the branch.
    shared = {node for node in sides[0] if node in sides[1]}
    own = [[node for node in path if node not in shared] for path in sides]
    sizes = [_size(module, path) for path in own]
    if sizes[0] == sizes[1]:
        raise ValueError("it is ambiguous which side of its addition is the shortcut")
    shortcut, branch = own if sizes[0] < sizes[1] else own[::-1]
    unshared = branch
    branch = sides[own.index(branch)]
    parts = [n for n in _children(branch) if _has_channels(module.get_submodule(str(n.target)))]
    if not parts or any(len(n.users) > 1 for n in unshared) or len(_children(shortcut)) > 1:
        return None
    # Only modules that do not act on channels (dropout) may come between the last part and the
    # addition, and no functions.
    behind = branch[: branch.index(parts[0])]
    targets = [str(node.target) for node in parts]
    if any(node.op != "call_module" for node in behind) or len(set(targets)) < len(targets):
        return None
    name = str(_children(shortcut)[0].target) if _children(shortcut) else ""
    output = next(node for node in graph.nodes if node.op == "output")
    adds_input = inputs[0] in addition.args
    adds_last = output.args[0] is addition and bool(name or adds_input)
    from_input = bool(name or adds_input) and not _children(shared)
    return Block(targets[-1], targets[0], name, adds_last=adds_last, from_input=from_input)


def _size(module: nn.Module, path: list[fx.Node]) -> tuple[int, int]:
    """Return the number of children that a path calls, and of modules in them."""
    children = [module.get_submodule(str(node.target)) for node in _children(path)]
    return len(children), sum(len(list(child.modules())) for child in children)


def _back(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes from ``node`` back to the input, while each has one tensor argument."""
    while True:
        yield node
        arguments = node.all_input_nodes
        if len(arguments) != 1:
            return
        node = arguments[0]


def _children(path: Iterable[fx.Node]) -> list[fx.Node]:
    return [node for node in path if node.op == "call_module"]


def _has_channels(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
