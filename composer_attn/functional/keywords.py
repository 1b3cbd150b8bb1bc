"""Names and types of the keyword arguments shared by functions and algorithms.

Their defaults are those of :class:`composer_attn.surgery.Selection` and :func:`apply_surgery`, to
which they are passed; the docstring of :func:`apply_attention` describes them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from composer_attn.functional.apply import apply_surgery
from composer_attn.surgery import Optimizers, Selection

Patterns = str | Iterable[str] | None
# The module is Any: the caller knows which attributes it has (such as in_channels).
Filter = Callable[[str, Any], bool] | None

# The callables that define the defaults.
DEFAULTS = (Selection, apply_surgery)


class Where(TypedDict, total=False):
    """Which sites to attend, except for ``min_channels``; see :func:`apply_attention`."""

    placement: str
    replace: bool
    include: Patterns
    exclude: Patterns
    filter_fn: Filter


class Trained(TypedDict, total=False):
    """Which optimizers train the new parameters; see :func:`apply_attention`."""

    optimizers: Optimizers
    param_group: int | None


class Surgery(Where, Trained, total=False):
    """Which sites to attend, and which optimizers train the attention."""


class AnySurgery(Surgery, total=False):
    """The same, for functions whose ``min_channels`` is keyword-only."""

    min_channels: int | None


SITES = (*Where.__annotations__, "min_channels")
TRAINED = tuple(Trained.__annotations__)


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split keywords into those for the sites, the optimizers and the attention."""
    sites = {name: value for name, value in keywords.items() if name in SITES}
    trained = {name: value for name, value in keywords.items() if name in TRAINED}
    rest = {n: v for n, v in keywords.items() if n not in sites and n not in trained}
    return sites, trained, rest
