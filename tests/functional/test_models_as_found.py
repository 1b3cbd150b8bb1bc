"""Device, dtype, mode, flags and hooks of a model are as they were, and new parts fit in."""

import copy

import pytest
import torch
from torch import nn

from composer_attn.functional import attended_modules, detach_attention
from tests import equations
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery, train_step


def new_parameters(model):
    return [p for attention in attended_modules(model).values() for p in attention.parameters()]


@each_surgery
@each_network
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_attentions_have_the_dtype_of_their_site(surgery, network, dtype):
    model = network.build().to(dtype)
    surgery.apply(model)
    assert {parameter.dtype for parameter in new_parameters(model)} == {dtype}
    y = model(network.batch(dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


@each_surgery
def test_a_model_of_mixed_dtypes_gets_mixed_attentions(surgery):
    model = NETWORKS["residual"].build()
    model.branches["a"].double()
    surgery.apply(model)
    found = attended_modules(model)
    dtypes = {name: next(found[name].parameters()).dtype for name in found}
    assert dtypes == {"branches.a": torch.float64, "shortcut.0": torch.float32}


@each_surgery
@each_network
def test_a_model_on_the_meta_device_is_attended_there_and_materialized_later(surgery, network):
    with torch.device("meta"):
        model = network.build()
    plan = surgery.apply(model, start="identity")
    assert {parameter.device.type for parameter in new_parameters(model)} == {"meta"}
    real, x = network.build(), network.batch()
    expected = copy.deepcopy(real)(x)
    assert plan == surgery.plan(real)
    model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict(), strict=False)
    for attention in attended_modules(model).values():
        attention.reset_parameters()
    assert torch.equal(model(x), expected)


@each_surgery
def test_the_default_dtype_does_not_leak_in(surgery):
    model = NETWORKS["residual"].build()
    torch.set_default_dtype(torch.float64)
    try:
        surgery.apply(model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in new_parameters(model)} == {torch.float32}


@each_surgery
@each_network
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_training_and_evaluation_mode_are_as_found(surgery, network, training):
    model = network.build().train(training)
    surgery.apply(model)
    assert {module.training for module in model.modules()} == {training}


@each_surgery
def test_each_attention_takes_the_mode_of_its_own_site(surgery):
    model = NETWORKS["residual"].build().train()
    model.branches.eval()
    surgery.apply(model)
    found = attended_modules(model)
    assert {name: found[name].training for name in found} == {
        "branches.a": False,
        "shortcut.0": True,
    }


@each_surgery
@each_network
def test_frozen_parameters_stay_frozen_and_attentions_train(surgery, network):
    model, x = network.build().requires_grad_(False), network.batch()
    old = {name: parameter.clone() for name, parameter in model.named_parameters()}
    surgery.apply(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = [parameter.detach().clone() for parameter in new_parameters(model)]
    train_step(model, optimizer, x)
    assert not any(model.get_parameter(name).requires_grad for name in old)
    assert all(torch.equal(model.get_parameter(name), old[name]) for name in old)
    ended = new_parameters(model)
    assert not any(torch.equal(p, before) for p, before in zip(ended, start, strict=True))


@each_surgery
def test_hooks_stay_and_see_the_attended_output(surgery):
    model = nn.Sequential(nn.Conv2d(3, 16, 3)).double()
    site, seen = model[0], {}
    site.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    site.register_forward_hook(lambda module, args, out: seen.update(out=out))
    site.register_full_backward_hook(lambda module, into, out: seen.update(gradient=out[0]))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    bare = nn.functional.conv2d(2 * x, site.weight, site.bias)
    surgery.apply(model)
    y = model(x)
    expected = equations.scale(bare, equations.excitation(site.attention, bare))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(seen["out"], y)
    y.sum().backward()
    assert torch.equal(seen["gradient"], torch.ones_like(y))
    detach_attention(model)
    assert torch.equal(model(x), bare)


@each_surgery
def test_hooks_registered_later_fire_once_and_can_be_removed(surgery):
    model, calls = nn.Sequential(nn.Conv2d(3, 16, 3)), []
    surgery.apply(model)
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 4, 4))
    handle.remove()
    model(torch.randn(1, 3, 4, 4))
    assert calls == [1]


@each_surgery
def test_references_to_a_site_stay_good(surgery):
    model = NETWORKS["resnet"].build()
    conv, weight = model.conv1, model.conv1.weight
    surgery.apply(model)
    assert model.conv1 is conv
    assert model.conv1.weight is weight
    assert isinstance(conv, nn.Conv2d)
    assert (conv.out_channels, conv.kernel_size, conv.stride) == (64, (7, 7), (2, 2))


@each_surgery
def test_a_shared_convolution_is_attended_once_and_used_twice(surgery):
    model = NETWORKS["shared"].build()
    surgery.apply(model)
    assert model.first is model.second
    assert tuple(attended_modules(model)) == ("stem", "first")
    uses = []
    model.first.attention.register_forward_hook(lambda *_: uses.append(1))
    model(NETWORKS["shared"].batch())
    assert uses == [1, 1]


@each_surgery
@pytest.mark.parametrize(
    ("network", "memory_format"),
    [
        (network, torch.channels_last if len(network.shape) == 4 else torch.channels_last_3d)
        for network in NETWORKS.values()
        if len(network.shape) > 3
    ],
    ids=[name for name, network in NETWORKS.items() if len(network.shape) > 3],
)
def test_channels_last_models_stay_channels_last(surgery, network, memory_format):
    model = network.build().to(memory_format=memory_format)
    surgery.apply(model)
    seen = {}
    for name in network.sites:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out})
        )
    model(network.batch().to(memory_format=memory_format))
    assert set(seen) == set(network.sites)
    assert all(y.is_contiguous(memory_format=memory_format) for y in seen.values())
