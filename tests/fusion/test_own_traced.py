"""Compiled, exported, traced or transformed, own attention is plain operations."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad
from torch.utils.flop_counter import FlopCounterMode

from composer_attn.fusion.deferred_tensor import Deferred
from tests.fusion.own_networks import assert_same, everything, own_pair, small

KINDS = ["torchvision", "EcaModule"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw() -> torch.Tensor:
    return torch.randn(2, 3, 9, 7, dtype=torch.float64)


@pytest.fixture(autouse=True)
def nothing_deferred(monkeypatch):
    """Fail if anything but plain tensors is passed on."""

    def refuse(*args, **kwargs):
        raise AssertionError("a value was deferred")

    monkeypatch.setattr(Deferred, "of", refuse)


@each_kind
@pytest.mark.parametrize("activation", ["silu in place", "hardswish"])
def test_compiled_as_one_graph_it_trains_the_same(kind, activation):
    torch._dynamo.reset()
    plain, fused = own_pair(small(kind, activation), norms=True)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = draw()
    assert_same(everything(fused, x, compiled), everything(plain, x))


@each_kind
@pytest.mark.parametrize("strict", [True, False])
def test_exported(kind, strict):
    plain, fused = (model.eval() for model in own_pair(small(kind)))
    x = draw()
    program = torch.export.export(fused, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("batch_norm" in target for target in targets)
    torch.testing.assert_close(program.module()(x), plain(x), rtol=1e-12, atol=1e-12)


@each_kind
def test_traced_by_jit(kind):
    plain, fused = (model.eval() for model in own_pair(small(kind)))
    x = draw()
    traced = torch.jit.trace(fused, x, check_trace=False)
    torch.testing.assert_close(traced(x), plain(x), rtol=1e-12, atol=1e-12)


@each_kind
def test_functional_transforms(kind):
    found, x = [], draw()
    for model in own_pair(small(kind)):
        state = dict(model.named_parameters())

        def loss(state, model=model):
            return functional_call(model.eval(), state, x).square().sum()

        found.append(grad(loss)(state))
    assert_same(found[1], found[0])


def test_fake_tensors_and_operation_counts():
    plain, fused = own_pair(small())
    counts = []
    for model in (plain, fused):
        with FlopCounterMode(display=False) as counter:
            model(draw())
        counts.append(counter.get_total_flops())
    assert counts[1] == counts[0] > 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fused(torch.empty(2, 3, 9, 7, dtype=torch.float64)).shape == (2, 4, 7, 5)


def test_scripting_is_refused_by_name():
    _, fused = own_pair(small())
    with pytest.raises(Exception, match="call unfuse_attention first"):
        torch.jit.script(nn.Sequential(fused))
