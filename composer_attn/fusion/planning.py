"""Plan a fusion: what each attention, and each norm, can be fused with, or why it cannot."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from composer_attn.fusion.class_checks import (
    can_defer,
    can_defer_output,
    check_class,
    check_deferring_norm,
    check_norm,
)
from composer_attn.fusion.dataflow import Dataflow, UndeterminedError
from composer_attn.fusion.deferring_norms import OwnAttention
from composer_attn.fusion.epilogue import find_epilogue
from composer_attn.fusion.fused_norms import AttendedNorm, NextNorm
from composer_attn.fusion.fusion_plan import FusedSite
from composer_attn.fusion.handoff import is_ours
from composer_attn.fusion.own_attention import (
    activation_in,
    activation_of_norm,
    describe,
    known_class,
    norm_with_activation,
)
from composer_attn.fusion.succession import uses, what_comes_before
from composer_attn.ops.activations import IDENTITY
from composer_attn.ops.norm_kinds import kind_of, known_kind
from composer_attn.surgery.attend import Attends, attended_side, is_attended, original_class
from composer_attn.surgery.stand_ins import is_replacement


@dataclass(frozen=True)
class Chain:
    """A norm, the activation that alone uses its output, and the attention that alone uses that.

    Without a norm, it begins with a convolution.
    """

    norm: str
    activation: str = ""
    attention: str = ""
    function: str = "identity"
    convolution: str = ""

    def described(self, site: FusedSite) -> FusedSite:
        """Return a site with the activation filled in."""
        return replace(
            site,
            activation=self.activation,
            function=self.function,
            convolution=self.convolution,
        )


def plan(
    model: nn.Module, sites: Collection[nn.Module], norms: bool
) -> tuple[list[FusedSite], list[FusedSite]]:
    """Plan a fusion of a network in which nothing is fused yet.

    Args:
        model: the network.
        sites: the attended modules, and the network's own attentions, to fuse.
        norms: whether to plan for norms without attention as well.

    Returns:
        The sites, in the order of the model; and the other norms that can be fused with something.
    """
    return _Planning(model, sites).found(norms)


class _Planning:
    def __init__(self, model: nn.Module, sites: Collection[nn.Module]):
        self.dataflow = Dataflow(model)
        self.sites = [module for module in model.modules() if module in sites]
        self.taken: dict[str, str] = {}
        self.added: set[str] = set()

    def found(self, norms: bool) -> tuple[list[FusedSite], list[FusedSite]]:
        """Plan every site, then the remaining norms."""
        chains: dict[str, Chain] = {}
        last = {self.dataflow.names[m][0] for m in self.sites if self._comes_last(m)}
        if norms or last:
            chains = {each.norm: each for each in map(self._chain, self._norms()) if each}
        by_attention = {each.attention: each for each in chains.values() if each.attention}
        if last - by_attention.keys():
            by_attention |= {each.attention: each for each in self._without_norms()}
        found = [self._site(module, by_attention) for module in self.sites]
        left = [each for each in chains.values() if norms and each.norm not in self.taken]
        pairs = [pair for pair in map(self._pair, left) if pair is not None]
        return found, pairs

    def _norms(self) -> list[str]:
        kinds = {m: kind for m in self.dataflow.names if (kind := kind_of(m)) is not None}
        # A norm that another norm calls is part of that one.
        within = {held for m, kind in kinds.items() if (held := kind.holder(m)) is not m}
        return [self.dataflow.names[m][0] for m in kinds if m not in within]

    def _chain(self, name: str) -> Chain | None:
        """Follow a norm to its attention; return None if it cannot be fused with what follows."""
        norm, activation, function = self.dataflow.modules[name], "", "identity"
        try:
            check_deferring_norm(norm)
            own = activation_of_norm(norm) if norm_with_activation(type(norm)) else None
            if own not in (None, IDENTITY):
                activation, function = f"{name}.act", own.name
            for use in uses(self.dataflow, name):
                module = self.dataflow.modules[use.name] if use.is_module else None
                if module is not None and self._comes_last(module):
                    if use.activation not in (None, IDENTITY):
                        if activation:
                            break
                        activation, function = use.name, use.activation.name
                    return Chain(name, activation, use.name, function)
                if use.activation is None or is_attended(module) or activation:
                    break
                activation, function = use.name, use.activation.name
        except UndeterminedError:
            if not can_defer(norm):
                return None
        return Chain(name, activation, function=function)

    def _without_norms(self) -> Iterator[Chain]:
        for module, (name, *_) in self.dataflow.names.items():
            chain = self._from_convolution(name) if can_defer_output(module) else None
            if chain is not None:
                yield chain

    def _from_convolution(self, name: str) -> Chain | None:
        """Follow a convolution to the attention of its activation; ``None`` if there is none."""
        activation = function = ""
        try:
            for use in uses(self.dataflow, name):
                if use.activation not in (None, IDENTITY):
                    if activation:
                        return None
                    activation, function = use.name, use.activation.name
                module = self.dataflow.modules[use.name] if use.is_module else None
                if module is not None and self._comes_last(module):
                    found = Chain("", activation, use.name, function, convolution=name)
                    return found if activation else None
                if use.activation is None or is_attended(module):
                    return None
        except UndeterminedError:
            pass
        return None

    def _comes_last(self, module: nn.Module) -> bool:
        """Return whether a site attends its own input, or an activation of it."""
        if not is_attended(module):
            return module in self.sites
        passes_on = is_replacement(module) or activation_in(module) is not None
        return passes_on and module in self.sites and attended_side(module) == "output"

    def _site(self, module: nn.Module, chains: Mapping[str, Chain]) -> FusedSite:
        name = self.dataflow.names[module][0]
        kind = original_class(module) if is_attended(module) else type(module)
        plain = FusedSite(name, kind.__name__)
        try:
            chain = chains.get(name)
            if not is_attended(module):
                check_own(module)
            norm = self._norm_of(module, name, chain)
            if chain is not None and not norm:
                return chain.described(replace(plain, last=True))
            if not norm:
                raise UndeterminedError(what_comes_before(self.dataflow, name))
            if norm in self.taken:
                raise UndeterminedError(f"{norm} is fused with {self.taken[norm]}")
            self.taken[norm] = name
            if chain is None or not chain.norm:
                return self._finished(replace(plain, norm=norm), norm)
            site = chain.described(replace(plain, norm=norm, last=True))
            # If an activation precedes the attention, the attention writes the output itself.
            return site if chain.activation else self._finished(site, name)
        except UndeterminedError as error:
            return replace(plain, reason=str(error))

    def _norm_of(self, site: nn.Module, name: str, chain: Chain | None) -> str:
        """Return the norm to fuse with a site, which may be empty if it follows an activation."""
        if is_attended(site):
            check_ours(site)
            if chain is None or not chain.norm:
                try:
                    return following_norm(self.dataflow, site, name)
                except UndeterminedError:
                    if chain is None:
                        raise
        return chain.norm if chain else ""

    def _finished(self, site: FusedSite, name: str) -> FusedSite:
        """Add the expected addition (unless another norm has it) and activation to a site."""
        try:
            epilogue = find_epilogue(self.dataflow, name)
        except UndeterminedError:
            return site
        if epilogue.addition in self.added - {""} or (site.last and not epilogue.addition):
            return site
        self.added.add(epilogue.addition)
        return replace(
            site,
            addition=epilogue.addition,
            activation=epilogue.activation,
            function=site.function if site.last else epilogue.function,
        )

    def _pair(self, chain: Chain) -> FusedSite | None:
        norm = self.dataflow.modules[chain.norm]
        site = chain.described(FusedSite(chain.norm, type(norm).__name__, chain.norm))
        if not chain.activation:
            site = self._finished(site, chain.norm)
        return site if site.activation or site.addition else None


def check_ours(site: Attends) -> None:
    """Check that an attention of this package can be fused with anything."""
    if attended_side(site) != "output":
        raise UndeterminedError(f"its {attended_side(site)} is attended, not its output")
    attention = site.attention
    if not is_ours(attention):
        raise UndeterminedError("its attention overrides forward")
    if attention.squeeze != "avg":
        raise UndeterminedError(f"squeeze={attention.squeeze!r} is not an average")


def check_own(attention: nn.Module) -> None:
    """Check that a network's own attention can be fused."""
    cls = known_class(attention)
    if cls is None:  # callers only pass known classes
        raise UndeterminedError(f"{type(attention).__name__} is not known")
    describe(attention, cls)
    check_class(attention, OwnAttention)


def following_norm(dataflow: Dataflow, site: Attends, name: str) -> str:
    """Return the norm to fuse with an attended module: itself, or the one that follows it."""
    if kind_of(site) is not None:
        check_norm(site, original_class(site), AttendedNorm)
        return name
    found = dataflow.following(name)
    norm = dataflow.modules[found]
    try:
        if is_attended(norm):
            raise UndeterminedError("it is attended itself")
        check_norm(norm, type(norm), NextNorm)
        channels = known_kind(norm).channels(norm)
        if channels != site.attention.channels:
            raise UndeterminedError(f"it normalizes {channels} channels")
    except UndeterminedError as error:
        raise UndeterminedError(f"{found} ({type(norm).__name__}) follows: {error}") from None
    return found
