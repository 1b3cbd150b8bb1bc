"""Fuse attended sites with the batch norms next to them, and undo it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from composer_attn.errors import ModelError
from composer_attn.fusion.class_checks import role_of_deferring_norm
from composer_attn.fusion.deferring_convolution import DeferringConvolution, is_fresh
from composer_attn.fusion.deferring_norms import (
    DeferringNorm,
    DeferringNormAct,
    ExpectedOperations,
    OwnAttention,
)
from composer_attn.fusion.fused_norms import (
    AttendedNorm,
    NextNorm,
    fused_class,
    is_fused,
    unfused_class,
)
from composer_attn.fusion.fusion_plan import FusedSite, FusionPlan
from composer_attn.fusion.handoff import ExpectedEpilogue, Link, Producer
from composer_attn.fusion.planning import plan
from composer_attn.fusion.recomputing import Recomputing, can_recompute
from composer_attn.surgery.attend import attention_of, is_attended, original_class, set_class

_ROLES = (
    *(AttendedNorm, NextNorm, DeferringNorm, DeferringNormAct),
    *(DeferringConvolution, OwnAttention, Recomputing),
)
_ATTRIBUTES = ("_attn_fused", "_attn_takes", "_attn_ends", "_attn_expects", "_attn_own")


def _fuse(
    model: nn.Module, backends: Mapping[nn.Module, str], norms: str, recompute: bool
) -> FusionPlan:
    """Fuse modules of a network in which nothing is fused yet."""
    found, pairs = plan(model, backends, bool(norms))
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as undo:
        undo.callback(unfuse, model)
        for module in model.modules():
            if module in backends and is_attended(module):
                vars(module)["_attn_fused"] = Producer(backends[module])
        for each in found:
            if each.fused:
                _join(modules, each, backends[modules[each.name]])
        for each in pairs:
            _set_deferring(modules[each.norm], norms, each)
        recomputing = _recompute(model, backends) if recompute else ()
        undo.pop_all()
    kinds = ", ".join(dict.fromkeys([*backends.values(), *([norms] if norms else [])]))
    return FusionPlan(kinds, tuple(found), tuple(pairs), recomputing)


def backends_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return the fused attended modules, and the network's own fused attentions.

    Each is mapped to the name of its backend.
    """
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        if is_attended(module) and module._attn_fused is not None:
            found[module] = module._attn_fused.backend
        elif isinstance(module, OwnAttention):
            found[module] = module._attn_own
    return found


def norms_of(model: nn.Module) -> str:
    """Return the backend of the norms that are fused without attention, or "" if there are none."""
    pending = (m._attn_expects for m in model.modules() if isinstance(m, DeferringNorm))
    return next((each.backend for each in pending if not each.until_attention), "")


def recomputes(model: nn.Module) -> bool:
    """Return whether convolutions compute their inputs again, where these are fused outputs."""
    return any(isinstance(module, Recomputing) for module in model.modules())


def unfuse(model: nn.Module) -> Callable[[], None]:
    """Undo every fusion in a model exactly; return a function that restores them.

    Raises:
        ModelError: the class of a fused module was extended since. Nothing was changed.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    covered = [
        name
        for name, module in modules.items()
        if is_fused(module) and type(module).__bases__[0] not in _ROLES
    ]
    if covered:
        raise ModelError(
            f"the class of {', '.join(covered)} was extended after it was fused (by a "
            "parametrization, or a wrapper): undo that first"
        )
    kept = []
    for module in modules.values():
        cls = type(module)
        attributes = {name: vars(module).pop(name) for name in _ATTRIBUTES if name in vars(module)}
        if is_fused(module):
            set_class(module, unfused_class(module))
        if attributes or cls is not type(module):
            kept.append((module, cls, attributes))

    def bring_back() -> None:
        for module, cls, attributes in kept:
            set_class(module, cls)
            vars(module).update(attributes)

    return bring_back


def fuse(
    model: nn.Module,
    backends: Mapping[nn.Module, str],
    norms: str | None = None,
    recompute: bool | None = None,
) -> FusionPlan:
    """Fuse attentions with their norms, where the dataflow permits, on the given backends.

    Args:
        model: the network. Existing fusions are undone first, and restored if anything is raised.
        backends: the backend of each attended module, and of each of the network's own attentions,
            that is to be fused.
        norms: the backend of all other batch norms, which are fused with what follows them; if
            empty, they are not fused; by default, as before.
        recompute: whether convolutions compute their inputs again instead of keeping them for
            backward, where these are outputs of what is fused; by default, as before.

    Returns:
        The plan that was applied.
    """
    norms = norms_of(model) if norms is None else norms
    recompute = recomputes(model) if recompute is None else recompute
    bring_back = unfuse(model)
    try:
        return _fuse(model, backends, norms, recompute)
    except BaseException:
        bring_back()
        raise


@contextmanager
def temporarily_unfused(model: nn.Module) -> Iterator[None]:
    """Undo all fusions of a model for an operation, and fuse the same modules again afterwards."""
    backends, norms, recompute = backends_of(model), norms_of(model), recomputes(model)
    bring_back = unfuse(model)
    try:
        yield
    except BaseException:
        bring_back()
        raise
    if backends or norms:
        _fuse(model, backends, norms, recompute)


def _recompute(model: nn.Module, sites: Iterable[nn.Module]) -> tuple[str, ...]:
    attentions = (attention_of(site) if is_attended(site) else site for site in sites)
    within = {module for attention in attentions for module in attention.modules()}
    named = model.named_modules()
    names = {m: name for name, m in named if m not in within and can_recompute(m)}
    for module in names:
        set_class(module, fused_class(type(module), Recomputing))
    return tuple(names.values())


def _join(modules: Mapping[str, nn.Module], found: FusedSite, backend: str) -> None:
    site, norm = modules[found.name], modules[found.norm]
    ends = norm
    if found.last:
        if found.convolution:
            _set_deferring_convolution(modules[found.convolution], backend)
        else:
            _set_deferring(norm, backend)
        ends = site
        if not is_attended(site):
            vars(site)["_attn_own"] = backend
            set_class(site, fused_class(type(site), OwnAttention))
    elif site is norm:
        set_class(norm, fused_class(type(norm), AttendedNorm))
    else:
        fresh = is_fresh(original_class(site))
        vars(site)["_attn_fused"].link = vars(norm)["_attn_takes"] = Link(fresh)
        set_class(norm, fused_class(type(norm), NextNorm))
    if found.addition or (found.activation and not found.last):
        vars(ends)["_attn_ends"] = ExpectedEpilogue(bool(found.addition and found.activation))


def _set_deferring_convolution(convolution: nn.Module, backend: str) -> None:
    """Let a convolution defer its output, for the attention of its activation."""
    vars(convolution)["_attn_expects"] = ExpectedOperations(backend, True)
    set_class(convolution, fused_class(type(convolution), DeferringConvolution))


def _set_deferring(norm: nn.Module, backend: str, pair: FusedSite | None = None) -> None:
    """Let a norm defer its output, for an attention or for the operations of ``pair``."""
    vars(norm)["_attn_expects"] = ExpectedOperations(backend, pair is None)
    if pair is not None and pair.addition:
        vars(norm)["_attn_ends"] = ExpectedEpilogue(bool(pair.activation))
    set_class(norm, fused_class(type(norm), role_of_deferring_norm(norm)))
