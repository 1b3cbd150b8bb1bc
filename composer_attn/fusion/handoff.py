"""What an attended module hands on, and when.

Outside of ``torch.compile`` it is a value: see :mod:`composer_attn.fusion.deferred_tensor`. While
``torch.compile`` looks on, it is plain operations, and a :class:`Link` tells the norm what the
tensor that it gets was computed from; what nobody needs then, the compiler leaves out.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.ops import attend as attend_alone
from composer_attn.ops.autograd_path import exported, traced
from composer_attn.ops.backends.layout import is_last
from composer_attn.ops.begun import Begun, excitation_of
from composer_attn.ops.fused import plain_enough
from composer_attn.ops.stages import excite
from composer_attn.surgery.attend import Attends


class Link:
    """Marks an attended module as one whose output a norm takes apart, and the norm as that one.

    Both have it, and neither refers to the other, so that a copy of one is whole.

    Attributes:
        fresh: whether the module, unattended, puts out a tensor that nobody else holds.
        traced: while ``torch.compile`` looks on: the attended output, the one unattended, and the
            module that they are from.
    """

    def __init__(self, fresh: bool = False):
        self.fresh = fresh
        self.traced: tuple[Tensor, Tensor, Attends] | None = None

    def __reduce__(self):
        return Link, (self.fresh,)

    def take(self, y: Tensor) -> tuple[Tensor, Attends] | None:
        """Return what an attended output was computed from, and by whom; None for another."""
        given, self.traced = self.traced, None
        return given[1:] if given is not None and given[0] is y else None


@dataclass(frozen=True)
class Ending:
    """What is expected to be done with the output of a norm; any other use is as right, but slower.

    Attributes:
        until_relu: whether a ReLU is still to come after an addition.
    """

    until_relu: bool = False


@dataclass
class Producer:
    """Computes the attention of one fused module.

    Attributes:
        backend: what computes it.
        link: shared with the norm that takes the module's output apart, if one is to do that.
    """

    backend: str
    link: Link | None = None

    def attend(self, module: Attends, x: Any, is_output: bool) -> Any:
        """Return ``x`` attended: the module's output, for a norm to take apart, or its input."""
        if needs_plain_operations() or not isinstance(x, Tensor):
            return module.attention(x)
        if not can_be_joined(module.attention):
            return module.attention(x)
        if type(x) is Deferred and not torch.compiler.is_compiling():
            found = _joined(module, x) if is_output else None
            if found is not None:
                return found
        link = self.link if is_output else None
        if not torch.compiler.is_compiling():
            return _attended(module.attention, x, self.backend, link)
        y = attend_alone(x, module.attention, self.backend)
        if link is not None:
            link.traced = (y, x, module)
        return y


def _attended(
    attention: ChannelAttention, x: Tensor, backend: str, link: Link | None = None
) -> Tensor:
    """Return what an attention makes of ``x``, which a norm may take apart given a link."""

    def begin(x: Tensor) -> Tensor:
        if not can_be_deferred(x) or not plain_enough(x, attention):
            return type(attention).forward(attention, x)
        excited = excite(x, attention, backend, has_watched_layers(attention))
        if link is None or not (link.fresh or keeps_versions(x)):
            return excited.result()
        return Deferred.of(excited, exposed=() if link.fresh else (x,))

    # By its call where someone looks, who sees what goes in and comes out.
    return attention(x, begin=begin) if is_watched(attention) else begin(x)


def _joined(module: Attends, x: Deferred) -> Tensor | None:
    """Attend what a norm, or an activation, puts out jointly with that, if nobody looks."""
    attention = module.attention
    if is_watched(attention) or has_watched_layers(attention):
        return None
    if not plain_enough(x.stage.x, cast(ChannelAttention, attention)):
        return None
    return attended(x, attention, vars(module).get("_attn_ends"))


def attended(given: Deferred, attention: Any, ends: Ending | None = None) -> Tensor | None:
    """Attend what a norm, or its activation, puts out; ``None`` if that is something else."""
    layers = excitation_of(attention)
    if layers is None:
        return None
    begun = given.taken_apart(Begun)
    if begun is None or begun.s is not None:
        return None
    found = begun.attended(*layers)
    if ends is None:
        return found.result()
    return Deferred.of(found, ends.until_relu, given.exposed())


def can_be_deferred(x: Tensor) -> bool:
    """Say whether a tensor is what a deferred one can be computed from: an ordinary one."""
    return (
        type(x) is Tensor
        and x.layout is torch.strided
        and not x.is_neg()
        and 3 <= x.dim() <= 5
        and (x.is_contiguous() or is_last(x))
    )


def keeps_versions(x: Tensor) -> bool:
    """Say whether changes in place are counted; inference mode does not."""
    return not x.is_inference() and not torch.is_inference_mode_enabled()


def is_watched(module: nn.Module) -> bool:
    """Say whether a module has hooks, which only its call runs."""
    return bool(module._forward_hooks) or has_hooks_before(module)


def has_hooks_before(module: nn.Module) -> bool:
    """Say whether a module has hooks that get, or wrap, what goes in before its forward does."""
    return bool(module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def has_watched_layers(attention: nn.Module) -> bool:
    """Say whether the layers of an attention have to be called, rather than computed."""
    return any(
        layer is not None and (is_watched(layer) or has_own_call(layer))
        for layer in attention._modules.values()
    )


def has_own_call(module: nn.Module) -> bool:
    """Say whether a module has a forward that is compiled, or the instance's own."""
    return module._compiled_call_impl is not None or "forward" in module.__dict__


def needs_plain_operations() -> bool:
    """Say whether anyone but torch.compile looks on who needs plain operations.

    torch.export does: whatever reads its graphs knows batch norms, and their patterns.
    """
    return exported() or (not torch.compiler.is_compiling() and traced())


def is_ours(attention: nn.Module) -> TypeGuard[ChannelAttention]:
    """Say whether an attention computes what every attention of ours does."""
    return (
        isinstance(attention, ChannelAttention)
        and type(attention).forward is ChannelAttention.forward
        and type(attention).excitation is ChannelAttention.excitation
    )


def can_be_joined(attention: nn.Module) -> TypeGuard[ChannelAttention]:
    """Say whether an attention may be computed in parts."""
    return is_ours(attention) and attention.squeeze == "avg" and not has_own_call(attention)
