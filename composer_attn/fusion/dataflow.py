"""Dataflow between modules, from traces: which module alone consumes the output of another."""

from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from torch import fx, nn

from composer_attn.errors import first_line
from composer_attn.surgery.attend import is_attended, original_class
from composer_attn.surgery.names import walk
from composer_attn.surgery.shallow_trace import trace_children
from composer_attn.surgery.stand_ins import split_name


class UndeterminedError(Exception):
    """The consumer of an output cannot be determined; the message says why."""


class Dataflow:
    """The dataflow in one network; each forward is traced once."""

    def __init__(self, model: nn.Module):
        self.names: dict[nn.Module, list[str]] = {}
        self.modules: dict[str, nn.Module] = {}
        for name, module in walk(model):
            self.names.setdefault(module, []).append(name)
            self.modules[name] = module
        self._graphs: dict[str, list[fx.Graph] | str] = {}

    def following(self, name: str) -> str:
        """Return the name of the only module that takes the output of ``name``.

        Raises:
            UndeterminedError: there is no such module, or it cannot be determined.
        """
        for parent, own in self.above(name):
            found = self._next(parent, own)
            if found:
                return self.first(join(parent, found))
        raise UndeterminedError("its output is the model's")

    def above(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield the module whose forward calls ``name``, the one that calls that one, and so on.

        Each is paired with the name of the previous module relative to it.

        Raises:
            UndeterminedError: the module occurs under several names.
        """
        if len(self.names[self.modules[name]]) > 1:
            raise UndeterminedError("it is used in several places")
        while name:
            parent, own = split_name(name)
            while not has_forward(self.modules[parent]) and parent:
                parent, above = split_name(parent)
                own = f"{above}.{own}"
            yield parent, own
            name = parent

    def _next(self, parent: str, own: str) -> str:
        """Return the child that follows ``own`` in its parent, or "" if the parent returns it."""
        if is_sequential(self.modules[parent]):
            return self.next_in_sequence(parent, own)
        return self.agreed(parent, lambda graph: self._next_in_graph(graph, parent, own))

    def next_in_sequence(self, parent: str, own: str) -> str:
        """Return the child of a Sequential that follows ``own``, or "" if there is none."""
        children = list(self.modules[parent]._modules)
        behind = children[children.index(own) + 1 :]
        return next((name for name in behind if not self.passes(parent, name)), "")

    def passes(self, parent: str, name: str) -> bool:
        """Return whether a child returns its input unchanged."""
        return type(self.modules[join(parent, name)]) is nn.Identity

    def agreed(self, parent: str, find: Callable[[fx.Graph], Any]) -> Any:
        """Return what ``find`` finds in the graphs of both modes; raise if the two differ."""
        found = [find(graph) for graph in self._traced(parent)]
        if found[0] != found[1]:
            raise UndeterminedError("its consumer differs between training and evaluation mode")
        return found[0]

    def _next_in_graph(self, graph: fx.Graph, parent: str, own: str) -> str:
        node = call_of(graph, own)
        while True:
            user = only_user(node)
            if user.op == "output" and user.args[0] is node:
                return ""
            if user.op != "call_module" or user.args != (node,) or user.kwargs:
                raise UndeterminedError(f"its output goes to {title(user)}")
            if not self.passes(parent, str(user.target)):
                return str(user.target)
            node = user

    def first(self, name: str) -> str:
        """Descend into nested Sequentials to the first module called."""
        module = self.modules[name]
        while is_sequential(module) and len(module):
            name = f"{name}.{next(iter(module._modules))}"
            module = self.modules[name]
        return name

    def _traced(self, parent: str) -> list[fx.Graph]:
        """Trace a forward in training and in evaluation mode, with children as leaves."""
        if parent not in self._graphs:
            module = self.modules[parent]
            try:
                if "forward" in vars(module):
                    raise ValueError("its forward was replaced on the instance")
                self._graphs[parent] = [trace_children(module, mode) for mode in (True, False)]
            except Exception as error:  # a forward may raise anything on symbolic inputs
                why = first_line(error)
                self._graphs[parent] = f"{parent or 'the model'} cannot be traced: {why}"
        found = self._graphs[parent]
        if isinstance(found, str):
            raise UndeterminedError(found)
        return found


def call_of(graph: fx.Graph, own: str) -> fx.Node:
    """Return the only call of a child; raise if there is not exactly one."""
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == own]
    if len(calls) != 1:
        raise UndeterminedError(f"it is called {len(calls)} times")
    return calls[0]


def only_user(node: fx.Node) -> fx.Node:
    """Return the only user of a node's output; raise if there is not exactly one."""
    users = list(node.users)
    if len(users) != 1:
        raise UndeterminedError(f"its output is used {len(users)} times")
    return users[0]


def title(node: fx.Node) -> str:
    """Return a name for a node's operation, for error messages."""
    if node.op == "output":
        return "a part of the result"
    return node.target if isinstance(node.target, str) else node.target.__name__


def is_sequential(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether a module calls its children in order, as ``nn.Sequential`` does."""
    kind = original_class(module) if is_attended(module) else type(module)
    return kind.forward is nn.Sequential.forward and "forward" not in vars(module)


def has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called; a ModuleList, for example, cannot."""
    return type(module).forward is not nn.Module.forward


def join(parent: str, name: str) -> str:
    """Return the qualified name of a child."""
    return f"{parent}.{name}" if parent else name
