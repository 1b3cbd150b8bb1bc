"""Compute the output of a fused region again, from what is kept for its gradient.

A fused attention keeps the feature map ``x`` that it read, and ``(N, C)`` tensors. Its output
``y = s phi(a x + b)`` is a function of those: what needs ``y`` for a gradient (the convolution
that reads it) can compute it again in one pass, instead of keeping a second map.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_attn.ops.activated_functions import spread_out
from composer_attn.ops.fused_functions import AttendThenNormalize, Scaled
from composer_attn.ops.pending_region import Finished, PendingRegion
from composer_attn.ops.region_functions import FinishedSite, recompute_site
from composer_attn.ops.sites import AttendThenNormalizeSite, ScaledSite

_ignoring_hooks = ContextVar("_ignoring_hooks", default=False)


def recipe_of(y: Tensor) -> Callable[[], Tensor] | None:
    """Return a function that computes ``y`` again, while its own gradient is outstanding.

    The values are bit-identical. ``None`` if ``y`` is not the output of a fused region, was
    changed in place, or is kept anyway for its own gradient (that of a ReLU after an addition); and
    if hooks on saved tensors are active: those of activation checkpointing give a tensor once only.

    The function raises torch's ``RuntimeError`` if what ``y`` was computed from was changed in
    place since, or is freed.
    """
    node: Any = y.grad_fn
    region = _REGIONS.get(getattr(type(node), "_forward_cls", None))
    if region is None or not region.can_be_recomputed(node) or hooks_are_active():
        return None

    def compute() -> Tensor:
        with torch.no_grad():
            return region.values(node)

    return compute


@contextmanager
def ignoring_hooks() -> Iterator[None]:
    """Let inputs be computed again although hooks on saved tensors are active: these only count."""
    token = _ignoring_hooks.set(True)
    try:
        yield
    finally:
        _ignoring_hooks.reset(token)


def hooks_are_active() -> bool:
    """Return whether hooks on saved tensors are active, unless these are to be ignored."""
    if _ignoring_hooks.get():
        return False
    # torch refuses to disable hooks that are active, but does not tell which are.
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("computing inputs again uses them"):
            return False
    except RuntimeError:
        return True


def _recompute_output(node: Any) -> Tensor:
    x, scale, _, shift, *_ = node.saved_tensors
    return node.passes.affine(x, scale.contiguous(), shift, None, True)


def _recompute_site(node: Any) -> Tensor:
    x, _, work, *_ = node.saved_tensors
    return node.calls.write(node.site, work, x, None, node.relu)


def _finished(node: Any) -> Tensor:
    _, x, *rest = node.saved_tensors
    parameters, kept = rest[: node.parameters], rest[node.parameters :]
    mean, variance, scale, shift, mu, inverse, s, *_ = kept
    scale, shift = spread_out(scale, x), spread_out(shift, x)
    of_norm = (mean, variance, scale, shift, mu, inverse)
    return PendingRegion(x, "reference", node.stages, of_norm, tuple(parameters), s).values()


def _scaled(node: Any) -> Tensor:
    x, _, s, *_ = node.saved_tensors
    return node.passes.affine(x, s.contiguous(), torch.zeros_like(s), None, False)


def _scaled_site(node: Any) -> Tensor:
    x, work, *_ = node.saved_tensors
    s = node.site.views(work)[2]
    return node.passes.affine(x, s, torch.zeros_like(s), None, False)


class _Region(NamedTuple):
    """An autograd function whose output can be computed again, given its node."""

    can_be_recomputed: Callable[[Any], bool]
    values: Callable[[Any], Tensor]


_REGIONS: dict[type | None, _Region] = {
    # Without a ReLU, the shift is not kept.
    AttendThenNormalize: _Region(lambda node: node.masked and not node.joined, _recompute_output),
    Finished: _Region(lambda node: not node.masked and not node.joined, _finished),
    FinishedSite: _Region(lambda node: not node.masked and not node.joined, recompute_site),
    Scaled: _Region(lambda node: True, _scaled),
    AttendThenNormalizeSite: _Region(lambda node: not node.joined, _recompute_site),
    ScaledSite: _Region(lambda node: True, _scaled_site),
}
