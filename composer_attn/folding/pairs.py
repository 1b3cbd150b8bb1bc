"""Find the norm that can be folded into each convolution, or why none can."""

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
from composer_attn.fusion.dataflow import Dataflow, UndeterminedError, is_sequential, join
from composer_attn.fusion.handoff import has_hooks_before, is_ours, is_watched
from composer_attn.surgery.attend import attended_side, is_attended, original_class

_KINDS = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
CONVOLUTIONS = tuple(getattr(nn, kind) for kind in _KINDS)
TRANSPOSED = CONVOLUTIONS[3:]
# These pad their input first, and use weight and bias as torch's convolutions do.
_PADDING = {"timm.layers.conv2d_same.Conv2dSame", "timm.layers.conv2d_same.Conv2dSameExport"}


def plan_pairs(model: nn.Module) -> FoldPlan:
    """Plan which norm is folded into each convolution of a network in evaluation mode.

    Args:
        model: the network, in which nothing is fused or folded.
    """
    dataflow = _FoldDataflow(model)
    found: list[FoldedPair] = []
    taken: dict[str, str] = {}
    for module in model.modules():
        if not isinstance(module, CONVOLUTIONS):
            continue
        name = dataflow.names[module][0]
        attended = is_attended(module) and attended_side(module) == "output"
        kind = (original_class(module) if is_attended(module) else type(module)).__name__
        pair = FoldedPair(name, kind, attended)
        try:
            norm = _find(dataflow, module, name)
            if norm in taken:
                raise UndeterminedError(f"{norm} is folded into {taken[norm]}")
            taken[norm] = name
            found.append(replace(pair, norm=norm))
        except UndeterminedError as error:
            found.append(replace(pair, reason=str(error)))
    return FoldPlan(tuple(found))


def _find(dataflow: "_FoldDataflow", conv: nn.Module, name: str) -> str:
    """Return the name of the norm that can be folded into a convolution."""
    _check_convolution(conv)
    following = dataflow.only(name)
    norm = dataflow.modules[following]
    try:
        _check_norm(norm)
        width = len(numbers_of(taken_from(norm)).mean)
        if width != conv.out_channels:
            raise UndeterminedError(f"it normalizes {width} channels")
    except UndeterminedError as error:
        kind = class_of_norm(norm).__name__
        raise UndeterminedError(f"{following} ({kind}) follows: {error}") from None
    return following


def _check_convolution(conv: nn.Module) -> None:
    """Check that a convolution uses its weight and bias as torch's convolutions do."""
    cls = original_class(conv) if is_attended(conv) else type(conv)
    plain = next(kind for kind in CONVOLUTIONS if isinstance(conv, kind))
    own = cls.forward is not plain.forward and qualified_name(cls) not in _PADDING
    inner = getattr(cls, "_conv_forward", None) is not getattr(plain, "_conv_forward", None)
    if own or inner or {"forward", "_conv_forward"} & vars(conv).keys():
        raise UndeterminedError("it has a custom forward")
    if is_parametrized(conv):
        raise UndeterminedError("its weights are parametrized")
    weight, bias = conv._parameters.get("weight"), conv._parameters.get("bias")
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        raise UndeterminedError("its weight is not a plain floating-point parameter")
    if weight.is_meta:
        raise UndeterminedError("its weight is on the meta device, without values")
    if bias is not None and type(bias) is not nn.Parameter:
        raise UndeterminedError("its bias is not a plain parameter")
    if is_watched(conv):
        raise UndeterminedError("it has hooks")
    if is_attended(conv) and attended_side(conv) == "output":
        _check_attention(conv.attention)


def _check_attention(attention: nn.Module) -> None:
    """Check that an attention can be computed from a rescaled feature map."""
    if not is_ours(attention) or "forward" in vars(attention):
        raise UndeterminedError("its attention has a custom forward")
    if attention.squeeze == "own":
        raise UndeterminedError("its attention has a custom squeeze")
    if any(is_watched(layer) for layer in attention.modules()):
        raise UndeterminedError("its attention has hooks")


def _check_norm(norm: nn.Module) -> None:
    """Check that a norm computes ``c z + t`` with constants, and possibly an activation."""
    if folded_class_of(norm) is None:
        raise UndeterminedError("not a batch norm, or one with a custom forward")
    if is_parametrized(norm):
        raise UndeterminedError("its class is extended by a parametrization")
    if is_attended(norm) and attended_side(norm) != "output":
        raise UndeterminedError(f"its {attended_side(norm)} is attended")
    if uses_batch_statistics(norm):
        raise UndeterminedError("it normalizes with the statistics of each batch")
    if is_watched(norm) or has_hooks_before(norm):
        raise UndeterminedError("it has hooks")
    if not bool(torch.stack(scale_and_shift(numbers_of(taken_from(norm)))).isfinite().all()):
        raise UndeterminedError(
            "its statistics and weights give a scale or shift that is not finite"
        )


class _FoldDataflow(Dataflow):
    """Dataflow for changes of values, which no module other than the norm may see.

    (Fusion only defers the computation of values, so an error in its plan does no harm.)
    """

    def only(self, name: str) -> str:
        """Return the only module that takes the output of ``name`` and has no other input.

        Raises:
            UndeterminedError: there is no such module, or it cannot be determined.
        """
        self._called_as(name)
        following = self.following(name)
        self._called_as(following)
        self._check_passed_within(name, following)
        return following

    def _check_passed_within(self, name: str, following: str) -> None:
        """Check that nothing else sees what a Sequential passes from one child to the next.

        Code that calls the children individually, not the Sequential, could use the values between.
        """
        pairs = list(zip(name.split("."), following.split("."), strict=False))
        same = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        if is_sequential(self.modules[".".join(same)]):
            first, second = (".".join([*same, part]) for part in pairs[len(same)])
            if self._called_as(first) != self._called_as(second):
                raise UndeterminedError(
                    "its caller calls the children of its Sequential one by one"
                )

    def _called_as(self, name: str) -> str:
        """Return which call runs a module: the module itself, or a Sequential containing it.

        Raises:
            UndeterminedError: it is called several times, or also used in another way.
        """
        called = owner = ""
        for parent, _ in self.above(name):
            if is_sequential(self.modules[parent]):
                continue
            if not called:
                own = _below(parent, name)
                called, owner = join(parent, self.agreed(parent, partial(_one_call, own))), parent
                continue
            # A caller of the owner may still reach into it, as far as its trace shows.
            graphs = self._graphs.get(parent)
            for graph in graphs if isinstance(graphs, list) else ():
                _check_not_within(_below(parent, owner), graph)
        return called


def _below(parent: str, name: str) -> str:
    """Return a module's name relative to a module that contains it."""
    return name[len(parent) + 1 :] if parent else name


def _one_call(own: str, graph: fx.Graph) -> str:
    """Return the child called to run ``own``: that child itself, or one that contains it."""
    above = [own[:i] for i, letter in enumerate(own) if letter == "."]
    calls = [target for target in _targets(graph) if target in (own, *above)]
    if len(calls) != 1:
        raise UndeterminedError(f"it is called {len(calls)} times")
    _check_not_within(calls[0], graph)
    return calls[0]


def _check_not_within(own: str, graph: fx.Graph) -> None:
    for target in _targets(graph):
        if target.startswith(f"{own}."):
            raise UndeterminedError(f"{target} is also used elsewhere")


def _targets(graph: fx.Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            yield str(node.target)
