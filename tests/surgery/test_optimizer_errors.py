"""Optimizers that do not fit are refused before model or optimizer changes."""

import pytest
import torch
from torch import nn

from composer_attn.errors import OptimizerError
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_surgery, train_step


def sgd(model):
    return [torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)]


def of_the_head(model):
    return [torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)]


def of_one_branch(model):
    return [torch.optim.SGD([*model.head.parameters(), model.branches["a"].weight], lr=0.1)]


CASES = {
    "sites in no optimizer": (
        of_the_head,
        {},
        r"weights of 2 sites are in none of the optimizers: branches\.a, shortcut\.0\. "
        r".*name the group that all new parameters join: param_group=0 to 0",
    ),
    "one site in no optimizer": (of_one_branch, {}, r"weights of 1 sites .*: shortcut\.0\. "),
    "index beyond the last": (sgd, {"param_group": 1}, "param_group must be 0 to 0; got 1"),
    "negative index": (sgd, {"param_group": -1}, "param_group must be 0 to 0; got -1"),
    "bool": (sgd, {"param_group": True}, "param_group must be the index of a group; got True"),
    "name": (sgd, {"param_group": "decay"}, "must be the index of a group; got 'decay'"),
    "index without optimizers": (
        lambda model: [],
        {"param_group": 0},
        r"param_group names a group of an optimizer: pass optimizers= too",
    ),
    "LBFGS": (
        lambda model: [torch.optim.LBFGS(model.parameters())],
        {},
        r"LBFGS never updates parameters added .* then build LBFGS from model\.parameters",
    ),
    "LBFGS beside another": (
        lambda model: [*sgd(model), torch.optim.LBFGS(model.parameters())],
        {"param_group": 0},
        "LBFGS never updates",
    ),
    "no optimizer": (
        lambda model: ["sgd"],
        {},
        r"must be a torch\.optim\.Optimizer or several of them; got a str",
    ),
    "parameters": (
        lambda model: model.parameters(),
        {},
        r"must be a torch\.optim\.Optimizer or several of them; got a Parameter",
    ),
    "scheduler": (
        lambda model: [torch.optim.lr_scheduler.ConstantLR(sgd(model)[0])],
        {},
        "got a ConstantLR",
    ),
}
each_case = pytest.mark.parametrize(("build", "options", "message"), CASES.values(), ids=CASES)


@each_surgery
@each_case
def test_what_does_not_fit_is_an_error_that_changes_nothing(surgery, build, options, message):
    network = NETWORKS["residual"]
    model, x = network.build(), network.batch()
    optimizers = build(model)
    optimizers = optimizers if isinstance(optimizers, list) else list(optimizers)
    live = [o for o in optimizers if type(o) is torch.optim.SGD]
    for optimizer in live:
        train_step(model, optimizer, x)
    before = snapshots.of_all(model, *live)
    for function in (surgery.apply, surgery.plan):
        with pytest.raises(OptimizerError, match=message):
            function(model, optimizers=optimizers, **options)
    assert snapshots.of_all(model, *live) == before


@each_surgery
def test_one_wrong_thing_alone_is_refused_too(surgery):
    model = NETWORKS["residual"].build()
    for wrong in (torch.optim.SGD, 3, "sgd", nn.Linear(2, 2)):
        with pytest.raises(OptimizerError, match="optimizers must be a torch"):
            surgery.apply(model, optimizers=wrong)


@each_surgery
def test_many_lost_sites_are_abbreviated(surgery):
    model = NETWORKS["resnet"].build()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
    says = r"weights of 12 sites .*layer2\.0\.conv2 and 7 more\. Pass"
    with pytest.raises(OptimizerError, match=says):
        surgery.apply(model, optimizers=optimizer)


@each_surgery
def test_optimizers_are_checked_even_where_there_is_nothing_to_attend(surgery):
    model = nn.Linear(2, 2)
    with pytest.raises(OptimizerError, match="LBFGS"):
        surgery.plan(model, optimizers=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(OptimizerError, match="param_group must be 0 to 0; got 7"):
        surgery.plan(model, optimizers=torch.optim.SGD(model.parameters()), param_group=7)
