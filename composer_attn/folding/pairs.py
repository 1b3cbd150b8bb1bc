"""Find the norm that goes into each convolution, or why none does."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from composer_attn.folding.arithmetic import scale_and_shift
from composer_attn.folding.fold_plan import FoldedPair, FoldPlan
from composer_attn.folding.folded_norm import (
    class_of_norm,
    folded_class_of,
    numbers_of,
    qualified_name,
    taken_from,
    uses_batch_statistics,
)
from composer_attn.fusion.dataflow import Proofs, UnprovedError, is_sequential, join
from composer_attn.fusion.handoff import has_hooks_before, is_ours, is_watched
from composer_attn.surgery.attend import attended_side, is_attended, original_class

_KINDS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
CONVOLUTIONS = tuple(getattr(nn, kind) for kind in _KINDS)
TRANSPOSED = CONVOLUTIONS[3:]
# These pad their input first, and use weight and bias as torch's do.
_PADDING = {"timm.layers.conv2d_same.Conv2dSame", "timm.layers.conv2d_same.Conv2dSameExport"}


def plan_pairs(model: nn.Module) -> FoldPlan:
    """Say which norm goes into each convolution of a network in evaluation mode.

    Args:
        model: the network, nothing in which is fused or folded.
    """
    proofs = _FoldProofs(model)
    found: list[FoldedPair] = []
    taken: dict[str, str] = {}
    for module in model.modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        name = proofs.names[module][0]
        attended = is_attended(module) and attended_side(module) == "output"
        kind = (original_class(module) if is_attended(module) else type(module)).__name__
        pair = FoldedPair(name, kind, attended)
        try:
            norm = _find(proofs, module, name)
            if norm in taken:
                raise UnprovedError(f"{norm} goes into {taken[norm]}")
            taken[norm] = name
            found.append(replace(pair, norm=norm))
        except UnprovedError as error:
            found.append(replace(pair, reason=str(error)))
    return FoldPlan(tuple(found))


def _find(proofs: "_FoldProofs", conv: nn.Module, name: str) -> str:
    """Find the norm of a convolution."""
    _check_convolution(conv)
    following = proofs.only(name)
    norm = proofs.modules[following]
    try:
        _check_norm(norm)
        width = len(numbers_of(taken_from(norm)).mean)
        if width != conv.out_channels:
            raise UnprovedError(f"it normalizes {width} channels")
    except UnprovedError as error:
        kind = class_of_norm(norm).__name__
        raise UnprovedError(f"{following} ({kind}) follows: {error}") from None
    return following


def _check_convolution(conv: nn.Module) -> None:
    """Make sure that a convolution computes by its weight and bias what torch's do."""
    cls = original_class(conv) if is_attended(conv) else type(conv)
    plain = next(kind for kind in CONVOLUTIONS if isinstance(conv, kind))
    own = cls.forward is not plain.forward and qualified_name(cls) not in _PADDING
    inner = getattr(cls, "_conv_forward", None) is not getattr(plain, "_conv_forward", None)
    if own or inner or {"forward", "_conv_forward"} & vars(conv).keys():
        raise UnprovedError("its forward is its own")
    if is_parametrized(conv):
        raise UnprovedError("its weights are parametrized")
    weight, bias = conv._parameters.get("weight"), conv._parameters.get("bias")
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        raise UnprovedError("its weight is no plain parameter of real numbers")
    if weight.is_meta:
        raise UnprovedError("its weight has no numbers, being on the meta device")
    if bias is not None and type(bias) is not nn.Parameter:
        raise UnprovedError("its bias is no plain parameter")
    if is_watched(conv):
        raise UnprovedError("hooks are on it")
    if is_attended(conv) and attended_side(conv) == "output":
        _check_attention(conv.attention)


def _check_attention(attention: nn.Module) -> None:
    """Make sure that an attention can be given what it squeezes of a scaled feature map."""
    if not is_ours(attention) or "forward" in vars(attention):
        raise UnprovedError("its attention has a forward of its own")
    if attention.squeeze == "own":
        raise UnprovedError("its attention squeezes in a way of its own")
    if any(is_watched(layer) for layer in attention.modules()):
        raise UnprovedError("hooks are on its attention")


def _check_norm(norm: nn.Module) -> None:
    """Make sure that a norm computes ``c z + t`` of constants, and perhaps an activation."""
    if folded_class_of(norm) is None:
        raise UnprovedError("not a batch norm, or one with a forward of its own")
    if is_parametrized(norm):
        raise UnprovedError("its class is extended by a parametrization")
    if is_attended(norm) and attended_side(norm) != "output":
        raise UnprovedError(f"its {attended_side(norm)} is attended")
    if uses_batch_statistics(norm):
        raise UnprovedError("it normalizes by the statistics of each batch")
    if is_watched(norm) or has_hooks_before(norm):
        raise UnprovedError("hooks are on it")
    if not bool(torch.stack(scale_and_shift(numbers_of(taken_from(norm)))).isfinite().all()):
        raise UnprovedError("its statistics or weights make no finite scale")


class _FoldProofs(Proofs):
    """Proofs that hold a change of numbers, which must reach nobody but the norm.

    (A fusion hands on values, and may be planned wrongly without harm.)
    """

    def only(self, name: str) -> str:
        """Find the module that alone takes the output of ``name``, and takes nothing else.

        Raises:
            UnprovedError: there is none, or it cannot be told.
        """
        self._called_as(name)
        following = self.following(name)
        self._called_as(following)
        self._check_passed_within(name, following)
        return following

    def _check_passed_within(self, name: str, following: str) -> None:
        """Make sure that what a Sequential passes from one child to the next reaches nobody else.

        Who calls its children one by one, and not it, may keep what is between them.
        """
        pairs = list(zip(name.split("."), following.split("."), strict=False))
        same = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if is_sequential(self.modules[".".join(same)]):
            first, second = (".".join([*same, part]) for part in pairs[len(same)])
            if self._called_as(first) != self._called_as(second):
                raise UnprovedError("what calls it looks into the Sequential that it is in")

    def _called_as(self, name: str) -> str:
        """Return what is called where a module is: itself, or a Sequential that it is in.

        Raises:
            UnprovedError: it is called several times, or used in another way, too.
        """
        called = owner = ""
        for parent, _ in self.above(name):
            if is_sequential(self.modules[parent]):
                continue
            if not called:
                own = _below(parent, name)
                called, owner = join(parent, self.agreed(parent, partial(_one_call, own))), parent
                continue
            # Who calls the owner may reach into it all the same, where it can be seen.
            graphs = self._graphs.get(parent)
            for graph in graphs if isinstance(graphs, list) else ():
                _check_not_within(_below(parent, owner), graph)
        return called


def _below(parent: str, name: str) -> str:
    """Name a module as seen from one that it is in."""
    return name[len(parent) + 1 :] if parent else name


def _one_call(own: str, graph: fx.Graph) -> str:
    """Name the child that is called where ``own`` is: the child itself, or one that it is in."""
    above = [own[:i] for i, letter in enumerate(own) if letter == "."]
    calls = [target for target in _targets(graph) if target in (own, *above)]
    if len(calls) != 1:
        raise UnprovedError(f"it is called {len(calls)} times")
    _check_not_within(calls[0], graph)
    return calls[0]


def _check_not_within(own: str, graph: fx.Graph) -> None:
    for target in _targets(graph):
        if target.startswith(f"{own}."):
            raise UnprovedError(f"{target} is used besides")


def _targets(graph: fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            yield str(node.target)
