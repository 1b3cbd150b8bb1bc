"""Find how a network is expected to go on with the output of a norm, to compute that with it."""

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from composer_attn.fusion.dataflow import (
    Proofs,
    UnprovedError,
    call_of,
    is_sequential,
    join,
    only_user,
)
from composer_attn.surgery.block_tracing import ADDITIONS

_IN_PLACE = {operator.iadd, "add_"}
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


@dataclass(frozen=True)
class Finish:
    """How a residual branch, or the like, ends after a norm.

    Attributes:
        addition: the addition, as torch.fx names it below the module whose forward adds; empty
            where nothing is added.
        relu: the ReLU after that, a module or likewise; empty where none follows.
    """

    addition: str = ""
    relu: str = ""


def find_finish(proofs: Proofs, name: str) -> Finish:
    """Find what is done with the output of the module ``name``, which nothing else takes.

    Raises:
        UnprovedError: neither an addition nor a ReLU follows, or that cannot be told.
    """
    for parent, own in proofs.above(name):
        look = _in_sequence if is_sequential(proofs.modules[parent]) else _in_forward
        finish = look(proofs, parent, own)
        if finish != Finish():
            return finish
    raise UnprovedError("its output is the model's")


# Both return a finish of nothing where the parent returns the output.
def _in_sequence(proofs: Proofs, parent: str, own: str) -> Finish:
    following = proofs.next_in_sequence(parent, own)
    return Finish("", _relu_in(proofs, join(parent, following)) if following else "")


def _in_forward(proofs: Proofs, parent: str, own: str) -> Finish:
    return proofs.agreed(parent, lambda graph: _in_graph(proofs, parent, call_of(graph, own)))


def _in_graph(proofs: Proofs, parent: str, node: fx.Node) -> Finish:
    addition = ""
    while True:
        try:
            user = only_user(node)
            # What else is done after the addition might change the shortcut in place.
            if addition and node.next is not user:
                return Finish(addition)
            if user.op == "output" and user.args[0] is node:
                return Finish(addition)
            if user.op == "call_module" and user.args == (node,) and not user.kwargs:
                if not proofs.passes(parent, str(user.target)):
                    return Finish(addition, _relu_in(proofs, join(parent, str(user.target))))
            elif not addition and _adds(user, node):
                addition = join(parent, user.name)
            elif _rectifies(user, node):
                return Finish(addition, join(parent, user.name))
            else:
                raise UnprovedError("neither an addition nor a ReLU follows")
        except UnprovedError:
            if addition:  # which is enough
                return Finish(addition)
            raise
        node = user


def _relu_in(proofs: Proofs, name: str) -> str:
    """Return the ReLU that a module is, or starts with."""
    name = proofs.first(name)
    relu = proofs.modules[name]
    if type(relu) is not nn.ReLU or "forward" in vars(relu):
        raise UnprovedError("neither an addition nor a ReLU follows")
    return name


def _adds(user: fx.Node, node: fx.Node) -> bool:
    """Say whether a node adds something else to another; in place, to that one."""
    if user.target not in ADDITIONS or user.kwargs or len(user.args) != 2:
        return False
    first, second = user.args
    if first is second or not all(isinstance(each, fx.Node) for each in user.args):
        return False
    return user.target not in _IN_PLACE or first is node


def _rectifies(user: fx.Node, node: fx.Node) -> bool:
    return user.target in _RELUS and user.args == (node,) and set(user.kwargs) <= {"inplace"}
