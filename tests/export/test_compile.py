import shutil

import pytest
import torch
from torchvision import models

from composer_attn.functional import apply_eca, apply_squeeze_excite, attended_modules
from tests.export.attended import assert_same_numbers, attended, each_gate
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="inductor compiles C++ for CPUs, and there is no compiler",
)


def gradients(model, output) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_compiled_trains_the_same(model, compiled, x) -> None:
    found, expected = compiled(x), model(x)
    assert_same_numbers(found, expected)
    found, expected = gradients(model, found), gradients(model, expected)
    assert any("attention" in name for name in expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@each_surgery
@each_network
def test_a_network_is_one_graph_without_breaks(surgery, network):
    model = attended(network, surgery)
    explained = torch._dynamo.explain(model)(network.batch())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@each_surgery
@each_network
def test_compiled_as_one_graph_a_network_trains_the_same(surgery, network):
    model = attended(network, surgery)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_compiled_trains_the_same(model, compiled, network.batch())


@each_surgery
@each_gate
def test_every_gate_compiles(surgery, gate, start):
    network = NETWORKS["residual"]
    model = attended(network, surgery, gate=gate, start=start)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_compiled_trains_the_same(model, compiled, network.batch())


@each_surgery
def test_one_more_compilation_serves_every_other_batch_size(surgery):
    network = NETWORKS["residual"]
    model, x = attended(network, surgery), network.batch()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for size in (2, 3, 5, 8, 13):
        batch = torch.randn(size, *x.shape[1:])
        assert_same_numbers(compiled(batch), model(batch))
    assert counter.frame_count == 2


@needs_compiler
def test_inductor_trains_both_attentions_the_same():
    model = NETWORKS["residual"].build()
    apply_squeeze_excite(model, 4, 16, include="branches.*")
    apply_eca(model, min_channels=16, include="shortcut.*")
    compiled = torch.compile(model, fullgraph=True)
    assert_compiled_trains_the_same(model, compiled, torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@needs_compiler
@each_surgery
def test_inductor_trains_a_resnet_the_same(surgery):
    # 64x64: at 32x32 inductor of torch 2.7 fails on plain ResNets too.
    model = attended(NETWORKS["resnet"], surgery)
    compiled = torch.compile(model, fullgraph=True)
    assert_compiled_trains_the_same(model, compiled, torch.randn(2, 3, 64, 64))


@pytest.mark.slow
@each_surgery
def test_resnet_50_is_one_graph_without_breaks(surgery):
    model = models.resnet50()
    surgery.applying(model)
    assert len(attended_modules(model)) == 46
    explained = torch._dynamo.explain(model)(torch.randn(2, 3, 64, 64))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
