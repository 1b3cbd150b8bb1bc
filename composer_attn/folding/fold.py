"""Fold the norms of a network into its convolutions, and restore them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from composer_attn.attention.squeeze_excitation import SqueezeExcitation
from composer_attn.errors import ModelError, first_few
from composer_attn.folding.arithmetic import FoldedNumbers, Layout, fold_attended, fold_plain
from composer_attn.folding.fold_plan import FoldPlan
from composer_attn.folding.folded_norm import (
    NormBefore,
    empty,
    end_watching,
    is_folded_norm,
    numbers_of,
    refill,
    taken_from,
    watch_loading,
)
from composer_attn.folding.folded_site import BUFFERS, FoldedSite, fill, vacate
from composer_attn.folding.pairs import TRANSPOSED
from composer_attn.surgery.attend import attended_side, is_attended
from composer_attn.surgery.names import walk
from composer_attn.surgery.validation import FOLDED


@dataclass(eq=False)
class Pair:
    """The original state of a convolution and its norm; both folded modules hold it.

    Attributes:
        weight: the original weight parameter of the convolution.
        bias: its original bias parameter, if any.
        norm: the original state of the norm.
        squeeze: the squeeze of the attention between the two; empty if there is none.
        columns: the original weight of the attention's layer that absorbed the norm's scale, if
            any.
        layout: layout of the convolution's weight.
        backend: the backend that attends the folded convolution's output.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    norm: NormBefore
    squeeze: str
    columns: nn.Parameter | None
    layout: Layout
    backend: str = "auto"

    def folded(self) -> FoldedNumbers:
        """Compute the folded parameters and buffers."""
        norm = numbers_of(self.norm)
        if not self.squeeze:
            return fold_plain(self.weight, self.bias, self.layout, norm)
        return fold_attended(self.weight, self.bias, self.layout, norm, self.squeeze, self.columns)

    def follow(self, weight: Tensor) -> None:
        """Move the originals to the device of ``weight``, and convert them if its dtype changed."""
        if weight.device == self.weight.device and weight.dtype == self.weight.dtype:
            return
        dtype = weight.dtype if weight.dtype != self.weight.dtype else None
        for own in (
            self.weight, self.bias, self.columns,
            *self.norm.parameters.values(), *self.norm.buffers.values(),
        ):  # fmt: skip
            if own is not None:
                own.data = own.data.to(weight.device, dtype if own.is_floating_point() else None)


def fold(model: nn.Module, plan: FoldPlan, backend: str) -> None:
    """Apply a plan; if anything is raised, nothing has changed."""
    modules = dict(walk(model))
    with torch.no_grad():
        pairs = [(modules[each.name], modules[each.norm]) for each in plan.folded]
        found = [(conv, norm, _pair(conv, norm, backend)) for conv, norm in pairs]
        numbers = [pair.folded() for _, _, pair in found]
    with ExitStack() as undo:
        for (conv, norm, pair), folded in zip(found, numbers, strict=True):
            undo.callback(_bring_back, conv, norm, pair)
            _put(conv, norm, pair, folded)
        if found:
            watch_loading(model)
        undo.pop_all()


def unfold(model: nn.Module) -> list[str]:
    """Restore every folded norm of a model exactly.

    Returns:
        The names of the norms.

    Raises:
        ModelError: a folded weight was changed, or one module of a pair is not in the model.
            Nothing was changed.
    """
    found = _find_pairs(model)
    changed = []
    with torch.no_grad():
        for name, (conv, _, pair) in found.items():
            if _has_changed(conv, pair):
                changed.append(name)
    if changed:
        raise ModelError(
            f"the weights of {len(changed)} convolutions have changed since they were folded "
            f"({first_few(changed)}), so that the weights before folding cannot be restored: go "
            "back to the network that was folded, and fold it again"
        )
    for conv, norm, pair in found.values():
        pair.follow(cast(Tensor, conv.weight))
        _bring_back(conv, norm, pair)
    end_watching(model)
    modules = {module: name for name, module in reversed(list(walk(model)))}
    return [modules[norm] for _, norm, _ in found.values()]


def _find_pairs(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module, Pair]]:
    """Return the folded convolutions by name, each with its norm and their original state."""
    held = {module: vars(module)[FOLDED] for module in model.modules() if FOLDED in vars(module)}
    norms = {pair: module for module, pair in held.items() if is_folded_norm(module)}
    convs = {pair: module for module, pair in held.items() if not is_folded_norm(module)}
    names = {module: name for name, module in reversed(list(walk(model)))}
    lost = [
        names[held]
        for pair, held in (norms | convs).items()
        if pair not in norms or pair not in convs
    ]
    if lost:
        raise ModelError(
            f"{', '.join(lost)}: folded with a module that is not in this model; call "
            "unfold_norms on the network that contains both"
        )
    return {names[conv]: (conv, norms[pair], pair) for pair, conv in convs.items()}


def _pair(conv: Any, norm: nn.Module, backend: str) -> Pair:
    attends = is_attended(conv) and attended_side(conv) == "output"
    return Pair(
        conv._parameters["weight"],
        conv._parameters["bias"],
        taken_from(norm),
        conv.attention.squeeze if attends else "",
        _columns(conv.attention) if attends else None,
        Layout(isinstance(conv, TRANSPOSED), conv.groups),
        backend,
    )


def _columns(attention: nn.Module) -> nn.Parameter | None:
    """Return the weight of the layer that is the only consumer of the squeezed values, if any."""
    cls = type(attention)
    if not isinstance(attention, SqueezeExcitation) or any(
        getattr(cls, name) is not getattr(SqueezeExcitation, name)
        for name in ("logits", "excitation_of")
    ):
        return None
    layer = attention.fc1
    weight = layer._parameters.get("weight")
    plain = type(layer) is nn.Linear and "forward" not in vars(layer)
    return weight if plain and type(weight) is nn.Parameter else None


def _slots(conv: Any, pair: Pair) -> Iterator[tuple[str, dict, str, Tensor | None]]:
    """Yield, for each replaced parameter, its field, dict and key, and the original."""
    yield "weight", conv._parameters, "weight", pair.weight
    yield "bias", conv._parameters, "bias", pair.bias
    if pair.columns is not None:
        yield "columns", conv.attention.fc1._parameters, "weight", pair.columns


def _put(conv: nn.Module, norm: nn.Module, pair: Pair, numbers: FoldedNumbers) -> None:
    vars(conv)[FOLDED] = vars(norm)[FOLDED] = pair
    for field, table, key, _ in _slots(conv, pair):
        value = getattr(numbers, field)
        table[key] = None if value is None else nn.Parameter(value, requires_grad=False)
    if pair.squeeze:
        fill(conv, numbers)
    empty(norm)


def _bring_back(conv: nn.Module, norm: nn.Module, pair: Pair) -> None:
    """Undo :func:`_put`; safe to call if it was only partly done."""
    for _, table, key, before in _slots(conv, pair):
        table[key] = before
    if pair.squeeze:
        vacate(conv)
    refill(norm, pair.norm)
    for module in (conv, norm):
        vars(module).pop(FOLDED, None)


def _has_changed(conv: nn.Module, pair: Pair) -> bool:
    """Return whether the numbers of a folded convolution differ from those folding computed."""
    expected = pair.folded()
    held = {field: table[key] for field, table, key, _ in _slots(conv, pair)}
    if isinstance(conv, FoldedSite):
        held |= {name: conv._buffers[buffer] for name, buffer in BUFFERS.items()}
    same = conv.weight.dtype == pair.weight.dtype and conv.weight.device == pair.weight.device
    return any(
        not _agree(held.get(each.name), getattr(expected, each.name), same)
        for each in fields(expected)
    )


def _agree(held: Tensor | None, expected: Tensor | None, exactly: bool) -> bool:
    if held is None or expected is None:
        return held is expected
    if exactly:
        return torch.equal(held, expected)
    # It was moved or converted since: compare to the precision of the coarser dtype.
    eps = max(torch.finfo(held.dtype).eps, torch.finfo(expected.dtype).eps)
    given, wanted = held.double().cpu(), expected.double().cpu()
    return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=4 * eps, atol=1e-6)
