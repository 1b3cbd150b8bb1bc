"""Follow the output of a module through the network as long as it has a single user."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import fx, nn

from composer_attn.fusion.dataflow import (
    Dataflow,
    UndeterminedError,
    call_of,
    is_sequential,
    join,
    only_user,
    title,
)
from composer_attn.fusion.epilogue import adds
from composer_attn.fusion.own_attention import activation_in
from composer_attn.fusion.tensor_functions import called_activation
from composer_attn.ops.activations import Activation


@dataclass(frozen=True)
class Use:
    """The single user of an output.

    Attributes:
        name: name of the module; of a function, its torch.fx node under the module whose forward
            calls it.
        is_module: whether it is a module.
        activation: the activation that it computes, if it is one.
        adds: whether it adds another tensor.
        node: its node in the graph of the module whose forward calls it, if that calls it directly:
            a module may be called several times.
    """

    name: str
    is_module: bool
    activation: Activation | None = None
    adds: bool = False
    node: str = ""


def uses(dataflow: Dataflow, name: str) -> Iterator[Use]:
    """Yield the single user of a module's output, the single user of that one's, and so on.

    Raises:
        UndeterminedError: there is no single user, or this cannot be determined.
    """
    places = dataflow.above(name)
    parent, own, is_module = *next(places, ("", "")), True
    while own:
        found = _next(dataflow, parent, own, is_module)
        if found is None:  # returned by the parent
            parent, own = next(places, ("", ""))
            is_module = True
            continue
        yield found
        if found.is_module and not found.node:
            places = dataflow.above(found.name)
            parent, own, is_module = *next(places, ("", "")), True
        else:
            own, is_module = found.node, False
            places = dataflow.above(parent) if parent else iter(())
    raise UndeterminedError("its output is the model's")


def _next(dataflow: Dataflow, parent: str, own: str, is_module: bool) -> Use | None:
    if is_sequential(dataflow.modules[parent]):
        following = dataflow.next_in_sequence(parent, own)
        return _module(dataflow, join(parent, following)) if following else None
    found: Use | None = dataflow.agreed(
        parent, lambda graph: _in_graph(dataflow, parent, _node(graph, own, is_module))
    )
    return found


def _node(graph: fx.Graph, own: str, is_module: bool) -> fx.Node:
    if is_module:
        return call_of(graph, own)
    return next(node for node in graph.nodes if node.name == own)


def _in_graph(dataflow: Dataflow, parent: str, node: fx.Node) -> Use | None:
    while True:
        user = only_user(node)
        if user.op == "output" and user.args[0] is node:
            return None
        if user.op == "call_module" and user.args == (node,) and not user.kwargs:
            if not dataflow.passes(parent, str(user.target)):
                return _module(dataflow, join(parent, str(user.target)), user.name)
            node = user
            continue
        name = join(parent, user.name)
        if adds(user, node):
            return Use(name, False, adds=True, node=user.name)
        called = called_activation(user.target, user.args, user.kwargs)
        if user.args[:1] != (node,) or called is None:
            raise UndeterminedError(f"its output goes to {title(user)}")
        return Use(name, False, called[0], node=user.name)


def _module(dataflow: Dataflow, name: str, node: str = "") -> Use:
    first = dataflow.first(name)
    module: nn.Module = dataflow.modules[first]
    return Use(first, True, activation_in(module), node=node if first == name else "")


def what_comes_before(dataflow: Dataflow, name: str) -> str:
    """Return the reason why what computes an attention's input cannot be fused with it."""
    for parent, own in dataflow.above(name):
        if is_sequential(dataflow.modules[parent]):
            children = list(dataflow.modules[parent]._modules)
            before = [c for c in children[: children.index(own)] if not dataflow.passes(parent, c)]
            found = join(parent, before[-1]) if before else ""
        else:
            found = dataflow.agreed(parent, partial(_source, parent, own))
        if found:
            module = dataflow.modules.get(found)
            said = found if module is None else f"{found} ({type(module).__name__})"
            return f"its input comes from {said}, not from a batch norm and activation alone"
    return "its input is the model's"


def _source(parent: str, own: str, graph: fx.Graph) -> str:
    node = call_of(graph, own)
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op == "placeholder":
        return ""
    return join(parent, str(source.target) if source.op == "call_module" else source.name)
