"""Fuse attended sites with the batch norms they are joined to, and take that apart again."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from composer_attn.errors import ModelError
from composer_attn.surgery.attend import attended_side, is_attended, original_class, set_class
from composer_attn.surgery.finish import Finish, find_finish
from composer_attn.surgery.fusion_plan import FusedSite, FusionPlan
from composer_attn.surgery.joined import (
    AttendedNorm,
    NextNorm,
    Parent,
    is_joined,
    joined_class,
    unjoined_class,
)
from composer_attn.surgery.links import Ending, Joint, Link, is_ours
from composer_attn.surgery.proof import Following, Proofs, UnprovedError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ROLES = (AttendedNorm, NextNorm, Parent)
_ATTRIBUTES = ("_attn_backend", "_attn_gives", "_attn_takes", "_attn_ends", "_attn_joints")


@dataclass(frozen=True)
class _Found:
    """A site as planned, how what it gives reaches its norm, and what comes after that."""

    site: FusedSite
    to_norm: Following | None = None
    finish: Finish | None = None


def _fuse(model: nn.Module, backends: Mapping[nn.Module, str]) -> FusionPlan:
    """Fuse attended modules of a network in which nothing is fused."""
    found = _plan(model, [m for m in model.modules() if m in backends])
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as undo:
        undo.callback(take_apart, model)
        for module, backend in backends.items():
            vars(module)["_attn_backend"] = backend
        for each in found:
            _join(modules, each)
        undo.pop_all()
    kinds = ", ".join(dict.fromkeys(backends.values()))
    return FusionPlan(kinds, tuple(each.site for each in found))


def backends_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return the attended modules that are fused, and what computes each."""
    sites = [module for module in model.modules() if is_attended(module)]
    return {site: site._attn_backend for site in sites if site._attn_backend is not None}


def take_apart(model: nn.Module) -> Callable[[], None]:
    """Undo every fusion in a model exactly; return a function that brings them back.

    Raises:
        ModelError: the class of a fused module was extended since. Nothing was changed.
    """
    modules = dict(model.named_modules())
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


def fuse_anew(model: nn.Module, backends: Mapping[nn.Module, str]) -> FusionPlan:
    """Compute attended modules by a backend each, jointly with their norms where that is proved.

    Args:
        model: the network. What is fused in it is taken apart first; if anything is raised, brought
            back.
        backends: for each attended module to fuse, what computes it.

    Returns:
        The plan that was carried out.
    """
    bring_back = take_apart(model)
    try:
        return _fuse(model, backends)
    except BaseException:
        bring_back()
        raise


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Take a model apart for an operation, and fuse what was fused again afterwards."""
    backends = backends_of(model)
    bring_back = take_apart(model)
    try:
        yield
    except BaseException:
        bring_back()
        raise
    if backends:
        _fuse(model, backends)


def _plan(model: nn.Module, sites: list[nn.Module]) -> list[_Found]:
    proofs = Proofs(model)
    found, taken, added = [], {}, set()
    for site in sites:
        name = proofs.names[site][0]
        plain = FusedSite(name, original_class(site).__name__)
        try:
            each = _find(proofs, site, plain)
            if each.site.norm in taken:
                raise UnprovedError(f"{each.site.norm} is fused with {taken[each.site.norm]}")
            taken[each.site.norm] = name
            each = _with_finish(proofs, each, added)
            added.add(each.site.addition)
            found.append(each)
        except UnprovedError as error:
            found.append(_Found(replace(plain, reason=str(error))))
    return found


def _find(proofs: Proofs, site: nn.Module, plain: FusedSite) -> _Found:
    """Find the norm of a site."""
    if attended_side(site) != "output":
        raise UnprovedError(f"its {attended_side(site)} is attended, not its output")
    if not is_ours(site.attention):
        raise UnprovedError("its attention has a forward of its own")
    if site.attention.squeeze != "avg":
        raise UnprovedError(f"squeeze={site.attention.squeeze!r} takes more than averages")
    if isinstance(site, _BatchNorm):
        _check_norm(site, original_class(site), AttendedNorm)
        return _Found(replace(plain, norm=plain.name))
    way = proofs.following(plain.name)
    norm = proofs.modules[way.name]
    try:
        if is_attended(norm):
            raise UnprovedError("it is attended itself")
        _check_norm(norm, type(norm), NextNorm)
        if norm.num_features != site.attention.channels:
            raise UnprovedError(f"it normalizes {norm.num_features} channels")
    except UnprovedError as error:
        raise UnprovedError(f"{way.name} ({type(norm).__name__}) follows: {error}") from None
    _check_parent(proofs, way.parent)
    return _Found(replace(plain, norm=way.name), to_norm=way)


def _with_finish(proofs: Proofs, found: _Found, added: Collection[str]) -> _Found:
    """Add the addition (if no other norm has it) and the ReLU that are proved to follow a norm."""
    try:
        finish = find_finish(proofs, found.site.norm)
        _check_parent(proofs, finish.parent)
    except UnprovedError:
        return found
    if finish.addition and finish.addition in added:
        return found
    site = replace(found.site, addition=finish.addition, relu=finish.relu)
    return replace(found, site=site, finish=finish)


def _check_norm(norm: nn.Module, kind: type, role: type) -> None:
    """Make sure that a norm computes what every torch.nn.BatchNorm does."""
    if not isinstance(norm, _NORMS):
        raise UnprovedError("not a BatchNorm1d, 2d or 3d")
    if is_parametrized(norm):
        raise UnprovedError("its class is extended by a parametrization")
    if kind.forward is not nn.BatchNorm2d.forward or "forward" in vars(norm):
        raise UnprovedError("its forward is its own")
    _check_class(norm, role)


def _check_parent(proofs: Proofs, name: str) -> None:
    parent = proofs.modules[name]
    trouble = ""
    if isinstance(parent, GraphModule):
        trouble = "it is a graph of torch.fx, which makes its forward anew"
    elif is_parametrized(parent):
        trouble = "its class is extended by a parametrization"
    if trouble:
        raise UnprovedError(f"{name or 'the model'}, whose forward joins them: {trouble}")
    _check_class(parent, Parent)


def _check_class(module: nn.Module, role: type) -> None:
    try:
        joined_class(type(module), role)
    except Exception as error:  # whatever a class raises that refuses to be extended
        kind = type(module).__name__
        raise UnprovedError(f"the class {kind} cannot be extended: {error}") from None


def _join(modules: dict[str, nn.Module], found: _Found) -> None:
    site, norm = modules[found.site.name], modules.get(found.site.norm)
    if found.to_norm is not None:
        link = vars(site)["_attn_gives"] = vars(norm)["_attn_takes"] = Link()
        _set_role(norm, NextNorm)
        way = found.to_norm
        _tell_parent(modules, link, way.parent, found.site.name, way.name, way.between)
    elif found.site.fused:
        _set_role(norm, AttendedNorm)
    if found.finish is not None:
        finish = found.finish
        ending = vars(norm)["_attn_ends"] = Ending(bool(finish.addition and finish.relu))
        _tell_parent(modules, ending, finish.parent, found.site.norm, None, finish.between)


def _tell_parent(
    modules: dict[str, nn.Module],
    link: Link,
    above: str,
    giver: str,
    taker: str | None,
    between: tuple[str, ...],
) -> None:
    parent = modules[above]
    _set_role(parent, Parent)
    ends = [None if name is None else _path(above, name) for name in (giver, taker)]
    passed = tuple((_path(above, name), type(modules[name])) for name in between)
    joint = Joint(link, *ends, passed)
    vars(parent)["_attn_joints"] = (*parent._attn_joints, joint)


def _set_role(module: nn.Module, role: type) -> None:
    if not is_joined(module):
        set_class(module, joined_class(type(module), role))


def _path(parent: str, name: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{parent}." if parent else "").split("."))
