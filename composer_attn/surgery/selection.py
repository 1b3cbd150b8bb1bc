"""Select the sites of a model to attend, with reasons for passing over the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from torch import nn

from composer_attn.checks import whole_number
from composer_attn.errors import ArgumentError
from composer_attn.surgery.names import as_patterns, check_patterns, matches
from composer_attn.surgery.replaceable_sites import find_own_attentions
from composer_attn.surgery.sites import CandidateSite, find_candidates


@dataclass(frozen=True)
class Selection:
    """The selection criteria for sites; all must hold.

    Attributes:
        min_channels: minimum number of channels at the site; ``None`` means 128, or 1 if
            ``replace``.
        include: glob patterns, at least one of which must match the site's name; ``None`` for all.
        exclude: glob patterns, none of which may match the site's name.
        filter_fn: ``filter_fn(name, module) -> bool``, called last.
        placement: which places in the network are candidates.
        replace: whether the candidates are the network's built-in attentions.
    """

    min_channels: int | None = None
    include: str | Iterable[str] | None = None
    exclude: str | Iterable[str] | None = None
    filter_fn: Callable[[str, nn.Module], bool] | None = None
    placement: str = "conv"
    replace: bool = False

    def __post_init__(self):
        if not isinstance(self.replace, bool):
            raise ArgumentError(f"replace must be True or False; got {self.replace!r}")
        if self.replace and self.placement != "conv":
            raise ArgumentError(
                "replace=True places attention where the network has its own, and takes no "
                f"placement; got placement={self.placement!r}"
            )
        if self.min_channels is None:
            object.__setattr__(self, "min_channels", default_min_channels(self.replace))
        whole_number("min_channels", self.min_channels)
        object.__setattr__(self, "include", as_patterns("include", self.include))
        object.__setattr__(self, "exclude", as_patterns("exclude", self.exclude))
        if self.filter_fn is not None and not callable(self.filter_fn):
            raise ArgumentError(
                "filter_fn must be a function of (name, module) that returns a bool; "
                f"got {self.filter_fn!r}"
            )


def default_min_channels(replace: bool) -> int:
    """Return the value that ``min_channels=None`` stands for."""
    return 1 if replace else 128


def reason_against(candidate: CandidateSite, selection: Selection) -> str:
    """Return why a site is passed over; empty if it is chosen."""
    if candidate.obstacle:
        return candidate.obstacle
    if candidate.channels < cast(int, selection.min_channels):  # set by __post_init__
        return f"fewer channels than min_channels={selection.min_channels}"
    if selection.include is not None and not matches(candidate.names, selection.include):
        return "not in include"
    if matches(candidate.names, selection.exclude or ()):
        return "in exclude"
    if selection.filter_fn and not selection.filter_fn(candidate.name, candidate.module):
        return "filter_fn said no"
    return ""


def select(model: nn.Module, selection: Selection) -> list[tuple[CandidateSite, str]]:
    """Pair every candidate with the reason why it is passed over (empty: chosen).

    Raises:
        ArgumentError: there is no such placement.
        PlacementError: the network has no site for it, or nothing to replace.
        PatternError: a pattern matches no site.
    """
    candidates = _candidates(model, selection)
    names = [name for candidate in candidates for name in candidate.names]
    check_patterns("include", selection.include, names)
    check_patterns("exclude", selection.exclude, names)
    return [(candidate, reason_against(candidate, selection)) for candidate in candidates]


def _candidates(model: nn.Module, selection: Selection) -> list[CandidateSite]:
    if selection.replace:
        return find_own_attentions(model)
    return find_candidates(model, selection.placement)
