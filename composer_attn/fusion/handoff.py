"""Hand-off of an attended output from its producer to a consumer module.

Outside ``torch.compile`` a deferred tensor is handed over: see
:mod:`composer_attn.fusion.deferred_tensor`. Under ``torch.compile`` the producer emits plain
operations, and a :class:`Link` tells the norm what its input was computed from; the compiler
removes the operations whose results are unused.
"""

from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.ops import attend as attend_alone
from composer_attn.ops import stages
from composer_attn.ops.autograd_path import exported, traced
from composer_attn.ops.backends.layout import is_dense_map
from composer_attn.ops.beforehand import (
    LARGE_FOR_CALLS,
    attend_in_place,
    attended_output,
    pays_off,
)
from composer_attn.ops.fused import fits_norm, plain_enough
from composer_attn.ops.pending_region import PendingRegion, excitation_of
from composer_attn.ops.prepared_norm import PreparedNorm, prepare_norm
from composer_attn.ops.prepared_site import PreparedSite, prepare
from composer_attn.ops.region_sites import PendingSite
from composer_attn.ops.sites import ExcitedSite, NormalizedSite
from composer_attn.ops.stages import Excited, Normalized
from composer_attn.surgery.attend import Attends


class Link:
    """Connects an attended module to the norm that consumes its output.

    Both hold the link and neither refers to the other, so that either can be copied alone.

    Attributes:
        fresh: whether the unattended output of the module is referenced by nothing else.
        traced: under ``torch.compile``: the attended output, the unattended output, and the module
            that computed them.
    """

    def __init__(self, fresh: bool = False):
        self.fresh = fresh
        self.traced: tuple[Tensor, Tensor, Attends] | None = None
        self._prepared: PreparedNorm | None = None

    def __reduce__(self):
        return Link, (self.fresh,)

    def take(self, y: Tensor) -> tuple[Tensor, Attends] | None:
        """Return the input and the producer of an attended output; None for other tensors."""
        given, self.traced = self.traced, None
        return given[1:] if given is not None and given[0] is y else None

    def normalized(
        self, excited: Excited | ExcitedSite, norm: nn.Module
    ) -> Normalized | NormalizedSite | None:
        """Normalize an attended output; ``None`` if the norm itself must be called."""
        x = excited.x
        if type(excited) is ExcitedSite:
            prepared = self._prepared
            if prepared is None or not prepared.fits(x, norm):
                prepared = self._prepared = prepare_norm(x, norm)
            if prepared is not None:
                return excited.normalized(norm, prepared)
        return excited.normalized(norm) if fits_norm(x, norm) else None


@dataclass(frozen=True)
class ExpectedEpilogue:
    """What is expected to follow a norm's output; any other use gives the same values, more slowly.

    Attributes:
        until_relu: whether a ReLU is expected after an addition.
    """

    until_relu: bool = False


@dataclass
class Producer:
    """Computes the attention of one fused module.

    Attributes:
        backend: name of the backend.
        link: shared with the norm that consumes the module's output, if there is one.
    """

    backend: str
    link: Link | None = None
    _prepared: PreparedSite | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self):
        return Producer, (self.backend, self.link)

    def attend_beforehand(self, module: Any, x: Any) -> Tensor | None:
        """Return the attended output of a convolution, given its input, if that is faster."""
        # First, because a compiled network would guard what it reads, and compile again for it.
        if traced():
            return None
        prepared, link = self._prepared, self.link
        if torch.is_grad_enabled() or prepared is None or link is None:
            return None
        call = prepared.for_numbers
        if call is None or not link.fresh or type(x) is not Tensor or x.shape[:1] != (1,):
            return None
        if not pays_off(x, module, LARGE_FOR_CALLS):
            return None
        if not prepared.fits(x, module._modules["attention"], module.out_channels):
            return None
        return attended_output(x, module, call)

    def attend_prepared(self, module: Attends, x: Any, is_output: bool) -> Tensor | None:
        """Do as :meth:`attend`, in what an earlier call has prepared; ``None`` if it cannot."""
        if traced():  # first, as above
            return None
        prepared, link = self._prepared, self.link if is_output else None
        if prepared is None or not prepared.fits(x, module._modules["attention"]):
            return None
        if link is not None and link.fresh:
            call = prepared.for_numbers
            if call is not None and attend_in_place(x, call):
                return x
        return _handed_over(prepared.excite(x), x, link)

    def attend(self, module: Attends, x: Any, is_output: bool) -> Any:
        """Return ``x`` (the module's output or input) attended; an output may be deferred."""
        link = self.link if is_output else None
        if needs_plain_operations() or not isinstance(x, Tensor):
            return module.attention(x)
        if not can_be_fused(module.attention):
            return module.attention(x)
        if type(x) is Deferred and not torch.compiler.is_compiling():
            found = _fused_with_norm(module, x) if is_output else None
            if found is not None:
                return found
        if not torch.compiler.is_compiling():
            return self._attended(module.attention, x, link)
        y = attend_alone(x, module.attention, self.backend)
        if link is not None:
            link.traced = (y, x, module)
        return y

    def _attended(self, attention: ChannelAttention, x: Tensor, link: Link | None) -> Tensor:
        """Return ``x`` attended; given a link, as a deferred tensor for a norm to consume."""
        watched = is_watched(attention)

        def begin(x: Tensor) -> Tensor:
            if not is_dense_map(x) or not plain_enough(x, attention):
                return type(attention).forward(attention, x)
            called = has_watched_layers(attention)
            prepared = prepare(x, attention, self.backend, called)
            if prepared is None:
                return _handed_over(stages.excite(x, attention, self.backend, called), x, link)
            if not watched:
                self._prepared = prepared.remember(x)
            return _handed_over(prepared.excite(x), x, link)

        # Through the module's __call__ if it has hooks, so that they see its input and output.
        return attention(x, begin=begin) if watched else begin(x)


def _handed_over(excited: Excited | ExcitedSite, x: Tensor, link: Link | None) -> Tensor:
    """Return ``x`` attended; given a link, as a deferred tensor for a norm to consume."""
    if link is None or not (link.fresh or keeps_versions(x)):
        return excited.result()
    return Deferred.of(excited, exposed=() if link.fresh else (x,))


def _fused_with_norm(module: Attends, x: Deferred) -> Tensor | None:
    """Attend the deferred output of a norm or activation, fused with it, if there are no hooks."""
    attention = module.attention
    if is_watched(attention) or has_watched_layers(attention):
        return None
    if not plain_enough(x.stage.x, cast(ChannelAttention, attention)):
        return None
    return attended(x, attention, vars(module).get("_attn_ends"))


def attended(
    given: Deferred, attention: Any, ends: ExpectedEpilogue | None = None
) -> Tensor | None:
    """Attend the deferred output of a norm or its activation; ``None`` for any other tensor."""
    layers = excitation_of(attention)
    if layers is None:
        return None
    pending: Any = given.take_stage(PendingRegion, PendingSite)
    if pending is None or pending.s is not None:
        return None
    found = pending.attended(*layers)
    if ends is None:
        return found.result()
    return Deferred.of(found, ends.until_relu, given.exposed())


def keeps_versions(x: Tensor) -> bool:
    """Return whether in-place changes of ``x`` are counted; in inference mode they are not."""
    return not x.is_inference() and not torch.is_inference_mode_enabled()


def is_watched(module: nn.Module) -> bool:
    """Return whether a module has hooks, which run only in its ``__call__``."""
    return bool(module._forward_hooks) or has_hooks_before(module)


def has_hooks_before(module: nn.Module) -> bool:
    """Return whether a module has forward pre-hooks or backward hooks, which wrap its input."""
    return bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def has_watched_layers(attention: nn.Module) -> bool:
    """Return whether any layer of an attention has to be called, rather than computed."""
    return any(
        layer is not None and (is_watched(layer) or has_own_call(layer))
        for layer in attention._modules.values()
    )


def has_own_call(module: nn.Module) -> bool:
    """Return whether a module's forward is compiled or was replaced on the instance."""
    return module._compiled_call_impl is not None or "forward" in module.__dict__


def needs_plain_operations() -> bool:
    """Return whether tracing, functorch, forward-mode AD or torch.export is active.

    All of them need plain operations (torch.compile does not). Consumers of torch.export's graphs,
    for example, recognize batch norms and match patterns around them.
    """
    return exported() or (not torch.compiler.is_compiling() and traced())


def is_ours(attention: nn.Module) -> TypeGuard[ChannelAttention]:
    """Return whether an attention computes what this package's attentions do."""
    return (
        isinstance(attention, ChannelAttention)
        and type(attention).forward is ChannelAttention.forward
        and type(attention).excitation is ChannelAttention.excitation
    )


def can_be_fused(attention: nn.Module) -> TypeGuard[ChannelAttention]:
    """Return whether an attention may be computed in parts, jointly with other operations."""
    return is_ours(attention) and attention.squeeze == "avg" and not has_own_call(attention)
