"""The attention of a folded convolution, prepared as one call of a backend.

Preparing it takes longer than the call itself, for a single image: it is done once, and again when
one of the tensors is another than before.
"""

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from composer_attn.ops.backends.table import find_excited
from composer_attn.ops.logits import Bottleneck, Neighbours

# A module's table of tensors or children, a name in it, and what it holds.
_Entry = tuple[dict[str, Any], str, Any]

# The layers that a backend computes between its passes.
_LAYERS = (Bottleneck, Neighbours)


class Prepared:
    """A prepared call, and everything that it depends on.

    Attributes:
        call: an :class:`.excited_cpp.PreparedCall`; None if no backend computes this attention.
    """

    __slots__ = (
        "_addresses", "_attention", "_counts", "_dtype", "_held", "_layers", "_tensors", "call",
    )  # fmt: skip

    def __init__(self, call: Any, dtype: torch.dtype, attention: Any, held: list[_Entry]):
        self.call = call
        self._dtype = dtype
        self._attention = attention
        self._held = held
        self._layers = [vars(each) for each in attention._modules.values() if each is not None]
        self._tensors = [value for _, _, value in held if isinstance(value, Tensor)]
        self._addresses, self._counts = self._memory()

    def _memory(self) -> tuple[list[int], list[int]]:
        tensors = self._tensors
        return list(map(Tensor.data_ptr, tensors)), list(map(Tensor.numel, tensors))

    def holds(self, dtype: torch.dtype) -> bool:
        """Return whether all tensors are those that it was prepared with."""
        if dtype is not self._dtype:
            return False
        for table, name, value in self._held:
            if table.get(name) is not value:
                return False
        return self._memory() == (self._addresses, self._counts)

    def is_watched(self) -> bool:
        """Return whether something sees the scales, or a layer has to be called for its result."""
        if self._attention.observer is not None:
            return True
        # As fusion.handoff.has_watched_layers; this runs at every call.
        for own in self._layers:
            if own["_forward_hooks"] or own["_forward_pre_hooks"]:
                return True
            if own["_backward_hooks"] or own["_backward_pre_hooks"] or "forward" in own:
                return True
            if own.get("_compiled_call_impl") is not None:
                return True
        return False


# Not attributes of the sites, which are copied and pickled.
_prepared: "WeakKeyDictionary[nn.Module, Prepared]" = WeakKeyDictionary()


def prepared_call(site: Any, backend: str, x: Tensor) -> Any:
    """Return the call that attends a folded site's output, if a backend has one.

    Args:
        site: the folded site.
        backend: name of the backend.
        x: the input of its convolution.

    Returns:
        An :class:`.excited_cpp.PreparedCall`; None if there is none, or the attention is watched.
    """
    found = _prepared.get(site)
    if found is None or not found.holds(x.dtype):
        held = list(_entries(site))
        found = Prepared(_call_of(site, backend, x), x.dtype, site.attention, held)
        _prepared[site] = found
    return None if found.call is None or found.is_watched() else found.call


def _call_of(site: Any, backend: str, x: Tensor) -> Any:
    attention = site.attention
    passes = find_excited(backend, x)
    layers = attention.by_hand(x.dtype) if attention.squeeze == "avg" else None
    if passes is None or layers is None or layers[0] not in _LAYERS:
        return None
    numbers = (site.folded_inverse, site.folded_post, site.folded_shift)
    return passes.prepare(
        x.dtype, layers[1], attention.gate, attention.start == "identity", *numbers
    )


def _entries(site: nn.Module) -> Iterator[_Entry]:
    """Yield everything that a prepared call depends on."""
    attention = site._modules["attention"]
    yield site._modules, "attention", attention
    for name in ("folded_inverse", "folded_post", "folded_shift"):
        yield site._buffers, name, site._buffers[name]
    for module in attention.modules() if attention is not None else ():
        for table in (module._modules, module._parameters):
            for name, held in table.items():
                yield table, name, held
