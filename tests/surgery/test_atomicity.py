"""Whatever fails, however late, model and optimizers are byte for byte as before."""

import importlib
import itertools

import pytest
import torch

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.functional import attended_modules
from composer_attn.surgery import Recipe
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery, train_step

# The modules, not the functions of the same names.
operating = importlib.import_module("composer_attn.functional.apply")
joining = importlib.import_module("composer_attn.surgery.optimizers")


class LateFailureError(Exception):
    pass


def failing(function, at, when, counts=lambda *args, **options: True):
    """Wrap a function that fails at its n-th call, before or after its work."""
    calls = itertools.count()

    def call(*args, **options):
        fails = counts(*args, **options) and next(calls) == at
        if fails and when == "before":
            raise LateFailureError(f"before call {at}")
        result = function(*args, **options)
        if fails:
            raise LateFailureError(f"after call {at}")
        return result

    return call


def adam(model):
    return [torch.optim.Adam(model.named_parameters(), lr=0.01)]


def adagrad(model):  # whose state for new parameters is filled at once
    return [torch.optim.Adagrad(model.parameters(), lr=0.01)]


def two(model):
    weights = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights[:1]}, {"params": weights[1:]}] if weights[1:] else weights
    others = others or [torch.nn.Parameter(torch.zeros(1))]
    return [torch.optim.SGD(groups, lr=0.1, momentum=0.9), torch.optim.AdamW(others, lr=0.1)]


each_optimizers = pytest.mark.parametrize("build", [adam, adagrad, two])
each_when = pytest.mark.parametrize("when", ["before", "after"])


def prepared(network, build):
    """Build a model and optimizers that have some state."""
    model, x = network.build(), network.batch()
    optimizers = build(model)
    train_step(model, optimizers[0], x)
    return model, optimizers


def fails_at(surgery, model, optimizers, monkeypatch, patch, attempts):
    """Attempt the surgery with a failure at each step, and compare everything."""
    before = snapshots.of_all(model, *optimizers)
    for at in range(attempts):
        with monkeypatch.context() as patched:
            patch(patched, at)
            with pytest.raises(LateFailureError, match=f"call {at}"):
                surgery.apply(model, optimizers=optimizers)
        assert snapshots.of_all(model, *optimizers) == before
        assert attended_modules(model) == {}


def and_works_after_all(surgery, model, optimizers, network):
    assert tuple(site.name for site in surgery.apply(model, optimizers=optimizers).chosen) == (
        network.sites
    )


@each_surgery
@each_network
@each_optimizers
@each_when
@pytest.mark.parametrize("step", ["attend", "join"])
def test_a_failure_at_any_commit_step(surgery, network, build, when, step, monkeypatch):
    model, optimizers = prepared(network, build)
    real = getattr(operating, step)

    def patch(patched, at):
        patched.setattr(operating, step, failing(real, at, when))

    fails_at(surgery, model, optimizers, monkeypatch, patch, len(network.sites))
    and_works_after_all(surgery, model, optimizers, network)


@each_surgery
@each_network
@each_when
def test_a_failure_while_building_any_attention(surgery, network, when, monkeypatch):
    model, optimizers = prepared(network, adam)
    real = Recipe.build

    def patch(patched, at):
        on_device = lambda recipe, channels, names, device, dtype: device != "meta"  # noqa: E731
        patched.setattr(Recipe, "build", failing(real, at, when, on_device))

    fails_at(surgery, model, optimizers, monkeypatch, patch, len(network.sites))
    and_works_after_all(surgery, model, optimizers, network)


@each_surgery
@each_optimizers
def test_a_failure_half_way_through_joining_a_group(surgery, build, monkeypatch):
    # After the parameters are listed, before their state is filled.
    network = NETWORKS["resnet"]
    model, optimizers = prepared(network, build)
    real = joining.fill_state

    def patch(patched, at):
        patched.setattr(joining, "fill_state", failing(real, at, "before"))

    fails_at(surgery, model, optimizers, monkeypatch, patch, len(network.sites))


@each_surgery
def test_a_class_that_cannot_be_extended_fails_before_anything_changes(surgery):
    class Final(torch.nn.Conv2d):
        def __init_subclass__(cls, **options):
            raise TypeError("final")

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), Final(16, 16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshots.of_all(model, optimizer)
    with pytest.raises(TypeError, match="final"):
        surgery.apply(model, optimizers=optimizer)
    assert snapshots.of_all(model, optimizer) == before


@each_surgery
def test_an_interruption_is_undone_as_well(surgery, monkeypatch):
    network = NETWORKS["residual"]
    model, optimizers = prepared(network, adam)
    before = snapshots.of_all(model, *optimizers)
    calls = itertools.count()

    def interrupted(*args):
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(operating, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        surgery.apply(model, optimizers=optimizers)
    assert snapshots.of_all(model, *optimizers) == before


def test_snapshots_notice_what_they_are_for():
    network = NETWORKS["residual"]
    model, optimizers = prepared(network, adam)
    before = snapshots.of_all(model, *optimizers)
    assert snapshots.of_all(model, *optimizers) == before
    for attention in (SqueezeExcitation(16, 4), EfficientChannelAttention(16)):
        model.branches["a"]._modules["attention"] = attention
        assert snapshots.of_all(model, *optimizers) != before
        del model.branches["a"]._modules["attention"]
    optimizers[0].state[model.head.weight]["exp_avg"][0, 0] += 1
    assert snapshots.of_all(model, *optimizers) != before
