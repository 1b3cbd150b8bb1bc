"""An attended network computes its convolutions, each followed by the papers' equations."""

import copy

import pytest
import torch

from composer_attn.functional import attended_modules
from tests import equations
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery

each_gate = pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])


@each_surgery
@each_network
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_equal_convolutions_followed_by_attention(surgery, network, training):
    plain = network.build().double().train(training)
    model, x = copy.deepcopy(plain), network.batch(dtype=torch.float64)
    surgery.apply(model)
    reference = equations.followed_by_attention(plain, attended_modules(model))
    expected = reference(x)
    assert (expected - copy.deepcopy(plain)(x)).abs().max() > 1e-3
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@each_surgery
@each_gate
def test_every_gate_computes_its_formula_in_a_network(surgery, gate):
    network = NETWORKS["residual"]
    plain, x = network.build().double(), network.batch(dtype=torch.float64)
    model = copy.deepcopy(plain)
    surgery.apply(model, gate=gate)
    expected = equations.followed_by_attention(plain, attended_modules(model))(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@each_surgery
@each_network
def test_gradients_of_old_parameters_equal_those_of_explicit_attention(surgery, network):
    plain = network.build().double()
    model, x = copy.deepcopy(plain), network.batch(dtype=torch.float64)
    surgery.apply(model)
    reference = equations.followed_by_attention(plain, attended_modules(model))
    for each in (model, reference):
        each(x).square().mean().backward()
    for name, _ in plain.named_parameters():
        site, _, leaf = name.rpartition(".")
        holder = reference.get_submodule(site)
        holder = holder.conv if isinstance(holder, equations.FollowedByAttention) else holder
        expected = getattr(holder, leaf).grad
        torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-8, atol=1e-9)


@each_surgery
@each_network
@each_gate
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_identity_start_leaves_outputs_as_they_were_to_the_bit(surgery, network, gate, training):
    model, x = network.build().train(training), network.batch()
    expected = copy.deepcopy(model)(x)
    surgery.apply(model, start="identity", gate=gate)
    assert torch.equal(model(x), expected)


@each_surgery
@each_network
def test_an_identity_start_learns(surgery, network):
    model, x = network.build(), network.batch()
    surgery.apply(model, start="identity")
    model(x).square().mean().backward()
    for attention in attended_modules(model).values():
        gradients = [parameter.grad for parameter in attention.last_layer.parameters()]
        assert all(gradient.count_nonzero() > 0 for gradient in gradients)
