"""After surgery, every optimizer and scheduler treats new parameters as if always there."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler

from composer_attn.functional import attended_modules
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_surgery, train_step

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
each_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "LambdaLR, one a group": lambda o: lr_scheduler.LambdaLR(
        o, [lambda step: 1 / (1 + step), lambda step: 0.5**step]
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=[0.2, 0.1], total_steps=6, cycle_momentum=False
    ),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.1),
}
each_scheduler = pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)

NETWORK = NETWORKS["residual"]


def trained(model, optimizer, x, steps=3):
    for _ in range(steps):
        train_step(model, optimizer, x)
    return snapshots.frozen(model.state_dict())


def attended(surgery, model):
    torch.manual_seed(1)
    surgery.apply(model)
    return model


@each_surgery
@each_optimizer
def test_training_is_as_if_the_optimizer_had_been_built_after_the_surgery(surgery, build):
    before, x = NETWORK.build(), NETWORK.batch()
    after = attended(surgery, copy.deepcopy(before))
    expected = trained(after, build(after.parameters()), x)
    optimizer = build(before.parameters())
    torch.manual_seed(1)
    surgery.apply(before, optimizers=optimizer)
    assert trained(before, optimizer, x) == expected


@each_surgery
@each_optimizer
def test_all_new_parameters_move_when_they_join_in_mid_training(surgery, build):
    model, x = NETWORK.build(), NETWORK.batch()
    optimizer = build(model.named_parameters())
    trained(model, optimizer, x, steps=2)
    surgery.apply(model, optimizers=optimizer)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, optimizer, x, steps=2)
    assert [name for name, p in model.named_parameters() if torch.equal(p, start[name])] == []
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters()}


@each_surgery
@each_optimizer
def test_an_optimizers_state_dict_goes_round(surgery, build, tmp_path):
    source, x = NETWORK.build(), NETWORK.batch()
    optimizer = build(source.named_parameters())
    surgery.apply(source, optimizers=optimizer)
    trained(source, optimizer, x)
    torch.save((source.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint.pt")
    target = NETWORK.build()
    resumed = build(target.named_parameters())
    surgery.apply(target, optimizers=resumed)
    weights, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    target.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert trained(target, resumed, x) == trained(source, optimizer, x)


def two_groups(model):
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.SGD([{"params": weights, "lr": 0.2}, {"params": others, "lr": 0.1}])


@each_surgery
@each_scheduler
def test_schedulers_also_drive_the_new_parameters(surgery, schedule):
    model, x = NETWORK.build(), NETWORK.batch()
    optimizer = two_groups(model)
    scheduler = schedule(optimizer)
    surgery.apply(model, optimizers=optimizer)
    parameters = [p for a in attended_modules(model).values() for p in a.parameters()]
    rates = []
    for _ in range(5):
        before = [parameter.detach().clone() for parameter in parameters]
        rates.append(optimizer.param_groups[0]["lr"])
        train_step(model, optimizer, x)
        scheduler.step()
        for parameter, old in zip(parameters, before, strict=True):  # plain SGD: p -= lr * gradient
            torch.testing.assert_close(parameter.detach(), old - rates[-1] * parameter.grad)
    assert len(set(rates)) > 2


@each_surgery
@each_scheduler
def test_schedules_are_the_same_with_and_without_surgery(surgery, schedule):
    rates = []
    for operate in (surgery.apply, lambda *_, **__: None):
        model, x = NETWORK.build(), NETWORK.batch()
        optimizer = two_groups(model)
        scheduler = schedule(optimizer)
        operate(model, optimizers=optimizer)
        rates.append([])
        for _ in range(5):
            train_step(model, optimizer, x)
            scheduler.step()
            rates[-1].append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]
