"""A warning if an optimizer trains a network, but not the attention added to it."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from composer_attn import apply_eca, apply_squeeze_excite, detach_attention, plan_eca
from composer_attn.errors import UntrainedAttentionWarning
from composer_attn.surgery import untrained


@pytest.fixture(autouse=True)
def no_other_watch():
    untrained._watches.clear()
    yield
    untrained._watches.clear()


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


def train(model, *optimizers, steps=3):
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def silently(model, *optimizers, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, *optimizers, **arguments)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_an_optimizer_built_before_a_surgery_that_it_was_not_passed_to(network, cls):
    optimizer = cls(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    with pytest.warns(UntrainedAttentionWarning) as caught:
        train(network, optimizer)
    assert len(caught) == 1
    assert str(caught[0].message) == (
        f"{cls.__name__} trains the network, but not the attention of 0, 2, which was added after "
        "the optimizer was built: pass it to the surgery as optimizers=, or build it afterwards"
    )
    assert caught[0].filename == __file__
    silently(network, optimizer)  # once is enough


def test_an_optimizer_that_has_stepped_before(network):
    optimizer = SGD(network.parameters(), lr=0.01)
    train(network, optimizer)
    apply_squeeze_excite(network, min_channels=1, latent_channels=2)
    with pytest.warns(UntrainedAttentionWarning, match="attention of 0, 2,"):
        train(network, optimizer)


def test_an_optimizer_that_was_passed(network):
    optimizer = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1, optimizers=optimizer)
    silently(network, optimizer)


def test_an_optimizer_built_afterwards_while_an_earlier_one_is_still_there(network):
    earlier = SGD(network.parameters(), lr=0.01)
    train(network, earlier)
    apply_eca(network, min_channels=1)
    silently(network, SGD(network.parameters(), lr=0.01))
    assert untrained._watches == []


def test_another_optimizer_may_hold_the_attention(network):
    backbone = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    attention = SGD([p for n, p in network.named_parameters() if "attention" in n], lr=0.1)
    silently(network, backbone, attention)


def test_only_the_sites_left_out_are_named(network):
    backbone = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    attention = SGD(network[0].attention.parameters(), lr=0.1)
    with pytest.warns(UntrainedAttentionWarning, match="attention of 2, which"):
        train(network, attention, backbone)


def test_attention_that_is_frozen_on_purpose(network):
    optimizer = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    for module in (network[0], network[2]):
        module.attention.requires_grad_(False)
    silently(network, optimizer)


def test_attention_that_was_taken_out_again(network):
    optimizer = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    train(network, optimizer, steps=1)
    kept = detach_attention(network)
    silently(network, optimizer)
    assert list(kept) == ["0", "2"]


def test_optimizers_of_other_networks(network):
    other = nn.Sequential(nn.Conv2d(3, 8, 3))
    apply_eca(network, min_channels=1)
    silently(other, SGD(other.parameters(), lr=0.01))
    silently(copy.deepcopy(other), SGD(other.parameters(), lr=0.01))


def test_a_network_is_not_kept_alive_and_its_watch_ends():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    apply_eca(model, min_channels=1)
    assert len(untrained._watches) == 1
    del model
    gc.collect()
    other = nn.Sequential(nn.Conv2d(3, 8, 3))
    train(other, SGD(other.parameters(), lr=0.01), steps=1)
    assert untrained._watches == []


def test_hooks_do_not_pile_up(network):
    for _ in range(5):
        apply_eca(network, min_channels=1)
        detach_attention(network)
    assert len(untrained._hooks) == 1
    assert len(untrained._watches) <= 1


def test_a_plan_watches_nothing_for_long(network):
    plan_eca(network, min_channels=1, example=torch.empty(2, 3, 8, 8))
    gc.collect()
    silently(network, SGD(network.parameters(), lr=0.01))
    assert untrained._watches == []


@pytest.mark.parametrize("placement", ["norm", "residual"])
def test_where_attention_goes_with_other_modules_weights(placement):
    from torchvision.models.resnet import BasicBlock

    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), BasicBlock(8, 8))
    optimizer = SGD(block.parameters(), lr=0.01)
    plan = apply_eca(block, min_channels=1, placement=placement)
    assert plan.chosen
    with pytest.warns(UntrainedAttentionWarning, match="trains the network, but not the attention"):
        train(block, optimizer)


def test_a_compiled_step_is_compiled_as_ever(network):
    optimizer = SGD(network.parameters(), lr=0.01)
    apply_eca(network, min_channels=1)
    model = network
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    before = network[0].weight.detach().clone()
    for _ in range(3):
        step()
    assert not torch.equal(before, network[0].weight)
