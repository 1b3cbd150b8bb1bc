"""Detaching restores the network exactly."""

import copy
import warnings

import pytest
import torch

from composer_attn.errors import ModelError, NothingAttendedWarning, OptimizerError
from composer_attn.functional import attended_modules, detach_attention
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery, train_step


@each_surgery
@each_network
def test_everything_is_as_before_surgery(surgery, network):
    model, x = network.build(), network.batch()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    train_step(model, optimizer, x)  # some state to be kept
    before = snapshots.of_all(model, optimizer)
    expected = copy.deepcopy(model)(x)
    surgery.apply(model, optimizers=optimizer)
    assert snapshots.of_all(model, optimizer) != before
    detach_attention(model, optimizers=optimizer)
    assert snapshots.of_all(model, optimizer) == before
    assert torch.equal(model(x), expected)


@each_surgery
@each_network
def test_the_attentions_come_back_by_name(surgery, network):
    model = network.build()
    surgery.apply(model)
    attentions = attended_modules(model)
    detached = detach_attention(model)
    assert tuple(detached) == network.sites
    assert all(detached[name] is attentions[name] for name in attentions)
    assert attended_modules(model) == {}


@each_surgery
@each_network
def test_parameters_and_states_leave_the_optimizer_after_training(surgery, network):
    model, x = network.build(), network.batch()
    named = list(model.named_parameters())
    optimizer = torch.optim.Adam(named, lr=0.01)
    surgery.apply(model, optimizers=optimizer)
    for _ in range(2):
        train_step(model, optimizer, x)
    momenta = [optimizer.state[parameter]["exp_avg"] for _, parameter in named]
    detach_attention(model, optimizers=optimizer)
    group = optimizer.param_groups[0]
    assert [id(p) for p in group["params"]] == [id(p) for _, p in named]
    assert group["param_names"] == [name for name, _ in named]
    assert len(optimizer.state) == len(named)
    assert all(optimizer.state[p]["exp_avg"] is m for (_, p), m in zip(named, momenta, strict=True))
    train_step(model, optimizer, x)


@each_surgery
def test_detached_networks_can_be_attended_again(surgery):
    network = NETWORKS["shared"]
    model, x = network.build(), network.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = surgery.apply(model, optimizers=optimizer)
    detach_attention(model, optimizer)
    assert surgery.apply(model, optimizers=optimizer) == first
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    train_step(model, optimizer, x)


@each_surgery
def test_several_optimizers_all_let_go(surgery):
    model = NETWORKS["residual"].build()
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizers = [torch.optim.SGD(weights, lr=0.1), torch.optim.Adam(others, lr=0.1)]
    before = snapshots.of_all(model, *optimizers)
    surgery.apply(model, optimizers=optimizers)
    detach_attention(model, optimizers=iter(optimizers))
    assert snapshots.of_all(model, *optimizers) == before


@each_surgery
def test_part_of_a_network_can_be_detached(surgery):
    model = NETWORKS["resnet"].build()
    surgery.apply(model)
    detach_attention(model.layer4)
    assert not [name for name in attended_modules(model) if name.startswith("layer4")]
    assert len(attended_modules(model)) == len(NETWORKS["resnet"].sites) - 3


def test_nothing_to_detach_is_a_warning():
    model = NETWORKS["residual"].build()
    before = snapshots.of_model(model)
    with pytest.warns(NothingAttendedWarning, match="no added attention") as caught:
        assert detach_attention(model) == {}
    assert caught[0].filename == __file__
    assert snapshots.of_model(model) == before


@each_surgery
def test_something_to_detach_gives_no_warning(surgery):
    model = NETWORKS["residual"].build()
    surgery.apply(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detach_attention(model)


@each_surgery
@pytest.mark.parametrize("wrong", ["sgd", 3, [None]])
def test_wrong_optimizers_are_an_error_before_anything_changes(surgery, wrong):
    model = NETWORKS["residual"].build()
    surgery.apply(model)
    before = snapshots.of_model(model)
    with pytest.raises(OptimizerError, match=r"optimizers must be a torch\.optim\.Optimizer"):
        detach_attention(model, optimizers=wrong)
    assert snapshots.of_model(model) == before


@each_surgery
def test_a_compiled_model_is_refused(surgery):
    model = NETWORKS["residual"].build()
    surgery.apply(model)
    with pytest.raises(ModelError, match="OptimizedModule"):
        detach_attention(torch.compile(model))
    assert len(attended_modules(model)) == 2
