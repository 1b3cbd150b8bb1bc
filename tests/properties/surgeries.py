"""The properties of a surgery, each of one random network, surgery and optimizers."""

import copy
import io
import warnings

import torch
from torch import nn

from composer_attn.errors import ComposerAttnError
from composer_attn.functional import attended_modules, detach_attention
from tests.properties.observed import of_all, of_model, output, runs, same, seed, tensors
from tests.properties.strategies import Grouping, Network, Surgery


def apply_or_refuse(network: Network, surgery: Surgery, grouping: Grouping) -> bool:
    """Succeed as planned, or raise an error of ours and leave everything as it was.

    A second time, nothing is left to do; detached, everything is as it was.

    Returns:
        Whether it succeeded.
    """
    model, optimizers, x, before = _ready(network, grouping)
    plain = output(model, x) if x is not None else None
    old, present = tensors(model), set(attended_modules(model))
    options = {"optimizers": optimizers or None, "param_group": grouping.param_group}
    seed(1)
    start = of_all(model, optimizers)
    planned = _attempt(surgery.plan, model, options)
    assert same(of_all(model, optimizers), start), "planning changed something"
    done = _attempt(surgery.apply, model, options)
    if isinstance(done, ComposerAttnError):
        assert (type(done), str(done)) == (type(planned), str(planned))
        assert same(of_all(model, optimizers), start), "a refused surgery changed something"
        return False
    assert done == planned
    found = attended_modules(model)
    chosen = {site.name for site in done.chosen}
    assert set(found) == chosen | present
    assert {type(found[name]).__name__ for name in chosen} <= {done.attention}
    new = [parameter for name in chosen for parameter in found[name].parameters()]
    assert sum(p.numel() for p in new) == done.parameters
    _assert_superset(tensors(model), old, chosen, surgery)
    _assert_trained(new, optimizers, grouping)
    if plain is not None:
        _assert_output(output(model, x), plain, surgery)
    _assert_twice_is_once(surgery, model, optimizers, options)
    _quietly(detach_attention, model, optimizers)
    if not present:
        assert of_all(model, optimizers)[:-1] == before[:-1], "detached, something is different"
        assert plain is None or torch.equal(output(model, x), plain)
    assert attended_modules(model) == {}
    return True


def copies_are_alike(network: Network, surgery: Surgery) -> bool:
    """Copy, pickle and reload an attended network wherever that can be done to the plain one."""
    model, plain = network.build(), network.build()
    x = network.batch(model)
    if (
        not runs(model, x)
        or not runs(plain, x)
        or isinstance(_attempt(surgery.apply, model, {}), ComposerAttnError)
    ):
        return False
    before, y = of_model(model), output(model, x)
    for how in (copy.deepcopy, _pickled):
        if not _works(how, plain, x):
            continue
        other = _quietly(how, model)
        assert of_model(model) == before
        assert list(attended_modules(other)) == list(attended_modules(model))
        assert torch.equal(output(other, x), y)
        _quietly(detach_attention, other)
        assert attended_modules(other) == {}
    fresh = network.build()
    runs(fresh, x)  # which initializes lazy parts
    surgery.apply(fresh)
    held = tensors(model)
    assert list(tensors(fresh)) == list(held)
    with torch.no_grad():
        for name, tensor in tensors(fresh).items():
            tensor.copy_(held[name])
    assert torch.equal(output(fresh, x), y)
    return True


def _ready(network: Network, grouping: Grouping) -> tuple:
    model = network.build()
    x = network.batch(model)
    if not runs(model, x):
        x = None
    optimizers = grouping.build(model)
    if grouping.stepped and x is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        for optimizer in optimizers:
            optimizer.step(lambda: 1.0)
        model.zero_grad()
    return model, optimizers, x, of_all(model, optimizers)


def _attempt(function, model: nn.Module, options: dict):
    try:
        return function(model, **options)
    except ComposerAttnError as error:
        return error


def _assert_superset(now: dict, old: dict, chosen: set, surgery: Surgery) -> None:
    for name, tensor in old.items():
        if surgery.arguments.get("replace") is True and name not in now:
            assert any(name.startswith(f"{site}.") for site in chosen)
        else:
            assert torch.equal(now[name], tensor)
    added = [name for name in now if name not in old]
    assert all("attention" in name.split(".") for name in added)


def _assert_trained(new: list, optimizers: list, grouping: Grouping) -> None:
    groups = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    for parameter in new:
        holding = [i for i, group in enumerate(groups) if any(parameter is p for p in group)]
        assert len(holding) == bool(optimizers)
        if optimizers and grouping.param_group is not None:
            assert holding == [grouping.param_group]
    names = [group.get("param_names") for o in optimizers for group in o.param_groups]
    for held, known in zip(groups, names, strict=True):
        assert known is None or len(known) == len(set(known)) == len(held)


def _assert_output(y: torch.Tensor, plain: torch.Tensor, surgery: Surgery) -> None:
    assert y.shape == plain.shape
    assert y.dtype == plain.dtype
    assert y.isfinite().all()
    if surgery.arguments.get("start") == "identity" and not surgery.arguments.get("replace"):
        assert torch.equal(y, plain)


def _assert_twice_is_once(surgery: Surgery, model: nn.Module, optimizers: list, options) -> None:
    seed(1)
    once = of_all(model, optimizers)
    assert surgery.apply(model, **options).chosen == ()
    assert same(of_all(model, optimizers), once), "a surgery repeated changed something"


def _pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _works(how, model: nn.Module, x: torch.Tensor) -> bool:
    try:
        return torch.equal(output(_quietly(how, model), x), output(model, x))
    except Exception:  # whatever copy and pickle raise on modules that cannot be copied
        return False


def _quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)
