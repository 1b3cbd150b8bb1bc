"""Optimizers follow when attention is replaced, restored or removed."""

import pytest
import torch
import torchvision
from torch import nn

from composer_attn.functional import (
    apply_eca,
    attended_modules,
    detach_attention,
    remove_attention,
)
from tests import snapshots
from tests.own_attention import own_attentions, with_se
from tests.surgeries import each_surgery, train_step


def no_decay(model):
    weights = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    biases = [(n, p) for n, p in model.named_parameters() if p.dim() <= 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


OPTIMIZERS = {
    "one group": lambda model: [torch.optim.Adam(model.parameters(), lr=0.01)],
    "names": lambda model: [torch.optim.SGD(model.named_parameters(), lr=0.01, momentum=0.9)],
    "biases without decay": lambda model: [torch.optim.AdamW(no_decay(model), lr=0.01)],
    "adagrad": lambda model: [torch.optim.Adagrad(model.parameters(), lr=0.01)],
    "two": lambda model: [
        torch.optim.SGD(no_decay(model)[:1], lr=0.1, momentum=0.9),
        torch.optim.Adam(no_decay(model)[1:], lr=0.1),
    ],
}
each_optimizers = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


def groups_of(optimizers):
    return [
        [[id(p) for p in group["params"]], group.get("param_names")]
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def held_by(optimizers):
    return [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]


@each_surgery
@each_optimizers
def test_optimizers_follow_there_and_back(surgery, build):
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    x = torch.randn(4, 3, 32, 32)
    optimizers = build(model)
    train_step(model, optimizers[0], x)
    before = [[ids, names and list(names)] for ids, names in groups_of(optimizers)]
    dropped = {id(p) for m in own_attentions(model).values() for p in m.parameters()}
    surgery.apply(model, replace=True, optimizers=optimizers)
    assert sorted(held_by(optimizers)) == sorted(id(p) for p in model.parameters())
    assert not {id(p) for o in optimizers for p in o.state} & dropped
    attentions = attended_modules(model).values()
    start = [p.detach().clone() for a in attentions for p in a.parameters()]
    for optimizer in optimizers:
        train_step(model, optimizer, x)
    after = [p for a in attentions for p in a.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(start, after, strict=True))
    detach_attention(model, optimizers)
    assert groups_of(optimizers) == before
    for optimizer in optimizers:
        train_step(model, optimizer, x)


@each_surgery
@each_optimizers
def test_what_optimizers_knew_of_the_old_ones_comes_back(surgery, build):
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    optimizers = build(model)
    for optimizer in optimizers:
        train_step(model, optimizer, torch.randn(4, 3, 32, 32))
    before = [snapshots.of_optimizer(o) for o in optimizers]
    surgery.apply(model, replace=True, optimizers=optimizers)
    detach_attention(model, optimizers)
    assert [snapshots.of_optimizer(o) for o in optimizers] == before


def test_another_optimizer_of_the_same_class_starts_afresh():
    model, _ = with_se()
    first, second = (torch.optim.Adam(model.parameters(), lr=0.1) for _ in range(2))
    train_step(model, first, torch.randn(4, 3, 8, 8))
    apply_eca(model, min_channels=16, replace=True, optimizers=first)
    detach_attention(model, second)
    assert not second.state


@each_surgery
def test_an_optimizer_built_after_the_surgery_takes_the_old_ones_back(surgery):
    model, _ = with_se()
    surgery.apply(model, replace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    detach_attention(model, optimizer)
    assert sorted(held_by([optimizer])) == sorted(id(p) for p in model.parameters())


@each_optimizers
def test_removed_parameters_leave_the_optimizers(build):
    model = torchvision.models.mobilenet_v3_small(num_classes=10)
    x = torch.randn(4, 3, 32, 32)
    optimizers = build(model)
    train_step(model, optimizers[0], x)
    removed = remove_attention(model, optimizers=optimizers)
    assert len(removed) == 9
    assert sorted(held_by(optimizers)) == sorted(id(p) for p in model.parameters())
    held = {id(p) for p in model.parameters()}
    assert all(id(p) in held for o in optimizers for p in o.state)
    for optimizer in optimizers:
        train_step(model, optimizer, x)


def test_a_removed_attentions_parameters_that_are_used_elsewhere_stay():
    model, _ = with_se()
    model.last.weight = nn.Parameter(torch.randn(8, 64, 1, 1))
    model.own.fc1.bias = nn.Parameter(torch.randn(16))
    model.register_parameter("tied", model.own.fc1.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    remove_attention(model, optimizers=optimizer)
    assert id(model.tied) in held_by([optimizer])
