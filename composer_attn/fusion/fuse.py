"""Fuse attended sites with the batch norms they are joined to, and take that apart again."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from composer_attn.errors import ModelError
from composer_attn.fusion.dataflow import Proofs, UnprovedError
from composer_attn.fusion.epilogue import find_finish
from composer_attn.fusion.fused_norms import (
    AttendedNorm,
    Ending,
    Joined,
    NextNorm,
    is_joined,
    joined_class,
    unjoined_class,
)
from composer_attn.fusion.fusion_plan import FusedSite, FusionPlan
from composer_attn.fusion.handoff import Link, Producer, is_ours
from composer_attn.surgery.attend import (
    Attends,
    attended_side,
    is_attended,
    original_class,
    set_class,
)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ROLES = (AttendedNorm, NextNorm)
_ATTRIBUTES = ("_attn_fused", "_attn_takes", "_attn_ends")
# These put out tensors that nobody else holds.
_FRESH = {
    getattr(nn, f"{kind}{dimensions}d").forward
    for kind in ("Conv", "ConvTranspose")
    for dimensions in (1, 2, 3)
}


def _fuse(model: nn.Module, backends: Mapping[Attends, str]) -> FusionPlan:
    """Fuse attended modules of a network in which nothing is fused."""
    found = _plan(model, [m for m in model.modules() if is_attended(m) and m in backends])
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as undo:
        undo.callback(unfuse, model)
        for module, backend in backends.items():
            vars(module)["_attn_fused"] = Producer(backend)
        for each in found:
            _join(modules, each)
        undo.pop_all()
    kinds = ", ".join(dict.fromkeys(backends.values()))
    return FusionPlan(kinds, tuple(found))


def backends_of(model: nn.Module) -> dict[Attends, str]:
    """Return the attended modules that are fused, and what computes each."""
    sites = [module for module in model.modules() if is_attended(module)]
    return {site: site._attn_fused.backend for site in sites if site._attn_fused is not None}


def unfuse(model: nn.Module) -> Callable[[], None]:
    """Undo every fusion in a model exactly; return a function that brings them back.

    Raises:
        ModelError: the class of a fused module was extended since. Nothing was changed.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    covered = [
        name
        for name, module in modules.items()
        if is_joined(module) and type(module).__bases__[0] not in _ROLES
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
        if is_joined(module):
            set_class(module, unjoined_class(module))
        if attributes or cls is not type(module):
            kept.append((module, cls, attributes))

    def bring_back() -> None:
        for module, cls, attributes in kept:
            set_class(module, cls)
            vars(module).update(attributes)

    return bring_back


def fuse(model: nn.Module, backends: Mapping[Attends, str]) -> FusionPlan:
    """Compute attended modules by a backend each, jointly with their norms where that is proved.

    Args:
        model: the network. What is fused in it is taken apart first; if anything is raised, brought
            back.
        backends: for each attended module to fuse, what computes it.

    Returns:
        The plan that was carried out.
    """
    bring_back = unfuse(model)
    try:
        return _fuse(model, backends)
    except BaseException:
        bring_back()
        raise


@contextmanager
def temporarily_unfused(model: nn.Module) -> Iterator[None]:
    """Take a model apart for an operation, and fuse what was fused again afterwards."""
    backends = backends_of(model)
    bring_back = unfuse(model)
    try:
        yield
    except BaseException:
        bring_back()
        raise
    if backends:
        _fuse(model, backends)


def _plan(model: nn.Module, sites: list[Attends]) -> list[FusedSite]:
    proofs = Proofs(model)
    found: list[FusedSite] = []
    taken: dict[str, str] = {}
    added: set[str] = set()
    for module in sites:
        name = proofs.names[module][0]
        plain = FusedSite(name, original_class(module).__name__)
        try:
            site = _find(proofs, module, plain)
            if site.norm in taken:
                raise UnprovedError(f"{site.norm} is fused with {taken[site.norm]}")
            taken[site.norm] = name
            site = _with_finish(proofs, site, added)
            added.add(site.addition)
            found.append(site)
        except UnprovedError as error:
            found.append(replace(plain, reason=str(error)))
    return found


def _find(proofs: Proofs, site: Attends, plain: FusedSite) -> FusedSite:
    """Find the norm of a site."""
    if attended_side(site) != "output":
        raise UnprovedError(f"its {attended_side(site)} is attended, not its output")
    if not is_ours(site.attention):
        raise UnprovedError("its attention has a forward of its own")
    if site.attention.squeeze != "avg":
        raise UnprovedError(f"squeeze={site.attention.squeeze!r} takes more than averages")
    if isinstance(site, _BatchNorm):
        _check_norm(site, original_class(site), AttendedNorm)
        return replace(plain, norm=plain.name)
    name = proofs.following(plain.name)
    norm = proofs.modules[name]
    try:
        if is_attended(norm):
            raise UnprovedError("it is attended itself")
        _check_norm(norm, type(norm), NextNorm)
        if norm.num_features != site.attention.channels:
            raise UnprovedError(f"it normalizes {norm.num_features} channels")
    except UnprovedError as error:
        raise UnprovedError(f"{name} ({type(norm).__name__}) follows: {error}") from None
    return replace(plain, norm=name)


def _with_finish(proofs: Proofs, site: FusedSite, added: Collection[str]) -> FusedSite:
    """Add the addition (if no other norm has it) and the ReLU that are expected after a norm."""
    try:
        finish = find_finish(proofs, site.norm)
    except UnprovedError:
        return site
    if finish.addition and finish.addition in added:
        return site
    return replace(site, addition=finish.addition, relu=finish.relu)


def _check_norm(norm: nn.Module, kind: type[nn.Module], role: type[Joined]) -> None:
    """Make sure that a norm computes what every torch.nn.BatchNorm does."""
    if not isinstance(norm, _NORMS):
        raise UnprovedError("not a BatchNorm1d, 2d or 3d")
    if is_parametrized(norm):
        raise UnprovedError("its class is extended by a parametrization")
    if kind.forward is not nn.BatchNorm2d.forward or "forward" in vars(norm):
        raise UnprovedError("its forward is its own")
    try:
        joined_class(type(norm), role)
    except Exception as error:  # whatever a class raises that refuses to be extended
        name = type(norm).__name__
        raise UnprovedError(f"the class {name} cannot be extended: {error}") from None


def _join(modules: dict[str, nn.Module], found: FusedSite) -> None:
    if not found.fused:
        return
    site, norm = modules[found.name], modules[found.norm]
    if site is norm:
        set_class(norm, joined_class(type(norm), AttendedNorm))
    else:
        fresh = original_class(site).forward in _FRESH
        vars(site)["_attn_fused"].link = vars(norm)["_attn_takes"] = Link(fresh)
        set_class(norm, joined_class(type(norm), NextNorm))
    if found.addition or found.relu:
        vars(norm)["_attn_ends"] = Ending(bool(found.addition and found.relu))
