"""The attention of a folded convolution, prepared as one call of a backend.

Preparing it takes longer than the call itself, for a single image: it is done once, and again when
one of the tensors is another than before.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from composer_attn.ops.backends.table import find_excited
from composer_attn.ops.logits import Bottleneck, Neighbours
from composer_attn.ops.recalled import Entry, Recalled, entries_of

# The layers that a backend computes between its passes.
_LAYERS = (Bottleneck, Neighbours)


class Prepared(NamedTuple):
    """A prepared call, and everything that it depends on.

    Attributes:
        call: an :class:`.excited_cpp.PreparedCall`; None if no backend computes this attention.
        dtype: the dtype of the maps.
        recalled: the tensors, and the layers.
    """

    call: Any
    dtype: Any
    recalled: Recalled


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
    if found is None or found.dtype is not x.dtype or not found.recalled.holds():
        recalled = Recalled(_entries(site), site.attention.children())
        found = _prepared[site] = Prepared(_call_of(site, backend, x), x.dtype, recalled)
    if found.call is None or site.attention.observer is not None or found.recalled.is_watched():
        return None
    return found.call


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


def _entries(site: nn.Module) -> Iterator[Entry]:
    """Yield everything that a prepared call depends on."""
    attention: Any = site._modules["attention"]
    yield site._modules, "attention"
    for name in ("folded_inverse", "folded_post", "folded_shift"):
        yield site._buffers, name
    yield from entries_of(attention)
