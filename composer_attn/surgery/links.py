"""Hand a tensor from one module to another, while the forward runs that was proved to join them.

A *parent* opens a link while its forward runs. The *giver*, somewhere below it, then gives its
output as it is, with its last step undone, and the *taker* does both steps at once. Whatever calls
giver or taker otherwise (by hand, or from the graph of a torch.fx trace) finds the link closed, and
each module computing what it always did.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from composer_attn.attention.base import ChannelAttention
from composer_attn.ops.head import exported, traced
from composer_attn.surgery.deferred import Deferred

# The attribute of a tensor that was given.
_TOKEN = "_composer_attn_token"


class _Token:
    """Which link a tensor went into, the module that gave it, and whether it was taken."""

    def __init__(self, link: "Link", giver: nn.Module | None = None):
        self.link = link
        self.giver = giver
        self.taken = False


class _ThisThread(threading.local):
    """The links that are open in a thread, and what was given into each."""

    def __init__(self):
        self.open: set[Link] = set()
        self.given: dict[Link, _Token] = {}


_here = _ThisThread()


class Link:
    """A way from giver to taker. Neither refers to the other, so a copy of one module is whole.

    Outside of torch.compile, every thread has its own open links, and a tensor carries its token.
    torch.compile traces neither; it traces one thread at a time, so that the state can be here.
    """

    def __init__(self):
        self.traced_open = False
        self.traced: tuple[Tensor, nn.Module] | None = None

    def __reduce__(self):
        return Link, ()

    def is_open(self) -> bool:
        """Say whether the parent's forward is running, and may use the link."""
        return self.traced_open if torch.compiler.is_compiling() else self in _here.open

    def open(self) -> None:
        """Let the giver give."""
        if torch.compiler.is_compiling():
            self.traced_open = True
        else:
            _here.open.add(self)

    def close(self) -> bool:
        """End that, and say whether everything given was taken."""
        if torch.compiler.is_compiling():
            taken = self.traced is None
            self.traced_open, self.traced = False, None
            return taken
        _here.open.discard(self)
        token = _here.given.pop(self, None)
        return token is None or token.taken

    def give(self, x: Tensor, giver: nn.Module) -> Tensor:
        """Mark a tensor as given, and return it."""
        if torch.compiler.is_compiling():
            self.traced = (x, giver)
        else:
            token = _here.given[self] = _Token(self, giver)
            setattr(x, _TOKEN, token)
        return x

    def take(self, x: Tensor) -> nn.Module | None:
        """Return what gave a tensor by this link; None where nothing did."""
        if torch.compiler.is_compiling() and self.traced is not None and self.traced[0] is x:
            giver = self.traced[1]
            self.traced = None
            return giver
        # A symbolic input would answer to any name.
        token = getattr(x, _TOKEN, None) if isinstance(x, Tensor) else None
        if token is None or token.link is not self:
            return None
        token.taken = True
        if not torch.compiler.is_compiling():
            delattr(x, _TOKEN)
        return token.giver


class Ending(Link):
    """What a parent does with the output of a norm: adds something to it, rectifies it, or both.

    torch.compile sees all of them, and needs no such help.
    """

    def __init__(self, until_relu: bool = False):
        super().__init__()
        self.until_relu = until_relu

    def __reduce__(self):
        return Ending, (self.until_relu,)

    def is_open(self) -> bool:
        """Say whether the parent's forward is running, and is not compiled."""
        return not torch.compiler.is_compiling() and super().is_open()

    def put_off(self, x: Tensor, compute: Callable[[bool, Tensor | None], Tensor]) -> Deferred:
        """Return the output of a norm, to be computed once it is known how it ends."""
        token = _here.given[self] = _Token(self)

        def taken(relu: bool, shortcut: Tensor | None) -> Tensor:
            token.taken = True
            return compute(relu, shortcut)

        return Deferred.of(x, taken, self.until_relu)


@dataclass(frozen=True)
class Joint:
    """A link as its parent knows it.

    Attributes:
        link: what giver and taker share.
        giver: names from the parent down to the giver.
        taker: names from the parent down to the taker; ``None`` where the parent itself takes.
        between: likewise of each module that the tensor passes through, and its class.
    """

    link: Link
    giver: tuple[str, ...]
    taker: tuple[str, ...] | None
    between: tuple[tuple[tuple[str, ...], type], ...] = ()

    def may_open(self, parent: nn.Module) -> bool:
        """Say whether both ends are still where they were, and nobody looks at what is given."""
        giver = _reach(parent, self.giver)
        # Not by getattr, which wrappers answer for what they wrap.
        if giver is None or giver.__dict__.get(self._gives_by()) is not self.link:
            return False
        if self.taker is not None:
            taker = _reach(parent, self.taker)
            if taker is None or taker.__dict__.get("_attn_takes") is not self.link:
                return False
        return all(type(_reach(parent, path)) is kind for path, kind in self.between)

    def _gives_by(self) -> str:
        return "_attn_ends" if self.taker is None else "_attn_gives"


def _reach(parent: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """Go down a path; None where a module on it is missing, replaced or watched."""
    module = parent
    for name in path:
        # Past nn.Module.__getattr__, which is slow: this runs at each call of a block.
        module = module._modules.get(name)
        if module is None or is_watched(module):
            return None
    return module


def is_watched(module: nn.Module) -> bool:
    """Say whether a module has hooks, or a forward that is compiled, or the instance's own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )


def needs_plain_operations() -> bool:
    """Say whether anyone but torch.compile looks on who needs plain operations.

    torch.export does: whatever reads its graphs knows batch norms, and their patterns.
    """
    return exported() or (not torch.compiler.is_compiling() and traced())


def is_ours(attention: nn.Module) -> bool:
    """Say whether an attention computes what every attention of ours does."""
    return (
        isinstance(attention, ChannelAttention)
        and type(attention).forward is ChannelAttention.forward
        and type(attention).excitation is ChannelAttention.excitation
    )


def can_be_joined(attention: nn.Module) -> bool:
    """Say whether an attention may be computed without calling it: nobody would see the call."""
    return (
        is_ours(attention)
        and attention.squeeze == "avg"
        and not is_watched(attention)
        and not any(is_watched(layer) for layer in attention._modules.values())
    )
