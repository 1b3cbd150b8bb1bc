"""The attention of a folded convolution's output in place, prepared as one call of a backend.

Preparing it takes longer than the call itself, for a single image: it is done once, and again when
one of the tensors is another than before.
"""

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from composer_attn.ops.backends.table import find_excited
from composer_attn.ops.logits import Bottleneck, Neighbours

Run = Callable[[Tensor], bool]
# A module's table of tensors or children, a name in it, and what it holds.
_Entry = tuple[dict[str, Any], str, Any]

# The layers that a backend computes between its passes.
_LAYERS = (Bottleneck, Neighbours)


class Prepared:
    """A prepared call.

    Attributes:
        run: attends a feature map in place; returns False if it is none that it takes.
        dtype: dtype of the feature map that it was prepared for.
    """

    __slots__ = ("_entries", "dtype", "run")

    def __init__(self, run: Run, dtype: torch.dtype, entries: list[_Entry]):
        self.run = run
        self.dtype = dtype
        self._entries: list[tuple[Any, ...]] = [(*entry, *_memory(entry[2])) for entry in entries]

    def holds(self, dtype: torch.dtype) -> bool:
        """Return whether all tensors are those that it was prepared with."""
        if dtype is not self.dtype:
            return False
        for table, name, value, address, count in self._entries:
            if table.get(name) is not value:
                return False
            if isinstance(value, Tensor) and _memory(value) != (address, count):
                return False
        return True


def _memory(value: Any) -> tuple[int, int]:
    return (value.data_ptr(), value.numel()) if isinstance(value, Tensor) else (0, 0)


# Not attributes of the sites, which are copied and pickled.
_prepared: "WeakKeyDictionary[nn.Module, Prepared]" = WeakKeyDictionary()


def attend_in_place(site: Any, backend: str, z: Tensor) -> bool:
    """Attend the output of a folded site in place, if a backend can.

    Args:
        site: the folded site, without hooks on its attention's layers.
        backend: name of the backend.
        z: the output of its convolution alone, which no one else holds.

    Returns:
        Whether it was done; otherwise ``z`` is as it was.
    """
    found = _prepared.get(site)
    if found is None or not found.holds(z.dtype):
        run = _run_of(site, backend, z)
        found = _prepared[site] = Prepared(run or _refuse, z.dtype, list(_entries(site)))
    return found.run(z)


def _refuse(z: Tensor) -> bool:
    return False


def _run_of(site: Any, backend: str, z: Tensor) -> Run | None:
    attention = site.attention
    passes = find_excited(backend, z)
    layers = attention.by_hand(z.dtype) if attention.squeeze == "avg" else None
    if passes is None or layers is None or layers[0] not in _LAYERS:
        return None
    numbers = (site.folded_inverse, site.folded_post, site.folded_shift)
    return passes.prepare(z, layers[1], attention.gate, attention.start == "identity", *numbers)


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
