import pytest
import torch

from composer_attn.errors import ModelError
from composer_attn.functional import attended_modules, detach_attention
from tests.export.attended import assert_same_numbers, attended, each_gate, longer
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery

# The only warning allowed is that tracing is deprecated, as from torch 2.13 on.
without_warnings = pytest.mark.filterwarnings(
    "error", r"ignore:`torch\.jit\.(trace|trace_method|save|load)` is:FutureWarning"
)


@each_surgery
@each_network
@without_warnings
def test_a_trace_without_warnings_takes_other_batches(surgery, network, tmp_path):
    model, x = attended(network, surgery), network.batch()
    torch.jit.trace(model, x).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for batch in (x, longer(x)):
        assert_same_numbers(loaded(batch), model(batch))


@each_surgery
@each_gate
@without_warnings
def test_every_gate_can_be_traced(surgery, gate, start):
    network = NETWORKS["residual"]
    model, x = attended(network, surgery, gate=gate, start=start), network.batch()
    assert_same_numbers(torch.jit.trace(model, x)(x), model(x))


@each_surgery
@each_network
def test_scripting_is_refused_rather_than_dropping_attention(surgery, network):
    model, x = attended(network, surgery), network.batch()
    before = model(x)
    with pytest.raises(ModelError, match=r"use torch\.jit\.trace or torch\.export"):
        torch.jit.script(model)
    assert tuple(attended_modules(model)) == network.sites
    assert torch.equal(model(x), before)


@each_surgery
def test_a_detached_network_can_be_scripted(surgery):
    model, x = attended(NETWORKS["resnet"], surgery), NETWORKS["resnet"].batch()
    detach_attention(model)
    assert_same_numbers(torch.jit.script(model)(x), model(x))
