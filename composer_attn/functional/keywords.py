"""The keywords that the functions and algorithms share, once: names and types.

Their defaults are those of :class:`composer_attn.surgery.Selection` and :func:`apply_surgery`,
which take them in the end; what they mean stands in the docstring of :func:`apply_attention`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from composer_attn.functional.apply import apply_surgery
from composer_attn.surgery import Optimizers, Selection

Patterns = str | Iterable[str] | None
# The module as Any: which attributes it has (in_channels, say), the caller knows.
Filter = Callable[[str, Any], bool] | None

# What knows the defaults.
DEFAULTS = (Selection, apply_surgery)


class Where(TypedDict, total=False):
    """Where attention goes, besides ``min_channels``; see :func:`apply_attention`."""

    placement: str
    replace: bool
    include: Patterns
    exclude: Patterns
    filter_fn: Filter


class Trained(TypedDict, total=False):
    """Who trains the new parameters; see :func:`apply_attention`."""

    optimizers: Optimizers
    param_group: int | None


class Surgery(Where, Trained, total=False):
    """Where attention goes, and who trains it."""


class AnySurgery(Surgery, total=False):
    """The same, where ``min_channels`` is given by keyword alone."""

    min_channels: int | None


SITES = (*Where.__annotations__, "min_channels")
TRAINED = tuple(Trained.__annotations__)


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Take keywords apart: which sites, who trains them, and the rest, which the attention gets."""
    sites = {name: value for name, value in keywords.items() if name in SITES}
    trained = {name: value for name, value in keywords.items() if name in TRAINED}
    rest = {n: v for n, v in keywords.items() if n not in sites and n not in trained}
    return sites, trained, rest
