"""Find the addition and activation that follow the output of a norm, to fuse them with it."""

import operator
from dataclasses import dataclass

from torch import fx

from composer_attn.fusion.dataflow import (
    Dataflow,
    UndeterminedError,
    call_of,
    is_sequential,
    join,
    only_user,
)
from composer_attn.fusion.own_attention import activation_in
from composer_attn.fusion.tensor_functions import called_activation
from composer_attn.ops.activations import IDENTITY, RELU
from composer_attn.surgery.attend import is_attended
from composer_attn.surgery.block_tracing import ADDITIONS

_NEITHER = "neither an addition nor an activation follows"
_IN_PLACE = {operator.iadd, "add_"}


@dataclass(frozen=True)
class Epilogue:
    """The operations at the end of a residual branch, after its last norm.

    Attributes:
        addition: qualified name of the addition: the torch.fx node under the module whose forward
            adds; empty if there is none.
        activation: qualified name of the activation module or node after that (after an addition, a
            ReLU); empty if there is none.
        function: name of the activation function.
    """

    addition: str = ""
    activation: str = ""
    function: str = ""


def find_epilogue(dataflow: Dataflow, name: str) -> Epilogue:
    """Find the operations on the output of the module ``name``, which must have no other users.

    Raises:
        UndeterminedError: neither an addition nor an activation follows, or the trace is unclear.
    """
    for parent, own in dataflow.above(name):
        look = _in_sequence if is_sequential(dataflow.modules[parent]) else _in_forward
        epilogue = look(dataflow, parent, own)
        if epilogue != Epilogue():
            return epilogue
    raise UndeterminedError("its output is the model's")


# Both return an empty Epilogue if the parent returns the output.
def _in_sequence(dataflow: Dataflow, parent: str, own: str) -> Epilogue:
    following = dataflow.next_in_sequence(parent, own)
    return _activation_in(dataflow, join(parent, following)) if following else Epilogue()


def _in_forward(dataflow: Dataflow, parent: str, own: str) -> Epilogue:
    return dataflow.agreed(parent, lambda graph: _in_graph(dataflow, parent, call_of(graph, own)))


def _in_graph(dataflow: Dataflow, parent: str, node: fx.Node) -> Epilogue:
    addition = ""
    while True:
        try:
            user = only_user(node)
            # Other operations after the addition might change the shortcut in place.
            if addition and node.next is not user:
                return Epilogue(addition)
            if user.op == "output" and user.args[0] is node:
                return Epilogue(addition)
            if user.op == "call_module" and user.args == (node,) and not user.kwargs:
                if not dataflow.passes(parent, str(user.target)):
                    name = join(parent, str(user.target))
                    return _activation_in(dataflow, name, addition)
            elif not addition and adds(user, node):
                addition = join(parent, user.name)
            elif found := _activates(user, node, bool(addition)):
                return Epilogue(addition, join(parent, user.name), found)
            else:
                raise UndeterminedError(_NEITHER)
        except UndeterminedError:
            if addition:  # sufficient on its own
                return Epilogue(addition)
            raise
        node = user


def _activation_in(dataflow: Dataflow, name: str, addition: str = "") -> Epilogue:
    """Return an epilogue with the activation that a module is, or starts with."""
    name = dataflow.first(name)
    module = dataflow.modules[name]
    found = None if is_attended(module) else activation_in(module)
    if found is None or found == IDENTITY or (addition and found != RELU):
        raise UndeterminedError(_NEITHER)
    return Epilogue(addition, name, found.name)


def adds(user: fx.Node, node: fx.Node) -> bool:
    """Return whether ``user`` adds another node to ``node``; if in place, into ``node``."""
    if user.target not in ADDITIONS or user.kwargs or len(user.args) != 2:
        return False
    first, second = user.args
    if first is second or not all(isinstance(each, fx.Node) for each in user.args):
        return False
    return user.target not in _IN_PLACE or first is node


def _activates(user: fx.Node, node: fx.Node, added: bool) -> str:
    found = called_activation(user.target, user.args, user.kwargs)
    if found is None or user.args[0] is not node or (added and found[0] != RELU):
        return ""
    return found[0].name
