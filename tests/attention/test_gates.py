"""Gates by name, and the start from exactly 1."""

import pytest
import torch

from composer_attn.attention.gates import GATES as TABLE
from composer_attn.attention.gates import SLOPES, find_gate
from composer_attn.errors import ArgumentError
from tests import equations
from tests.attention.attentions import GATES, STARTS, each_attention, each_gate, each_start

each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)


def test_the_gates_are_those_of_the_documentation():
    assert {start: tuple(gates) for start, gates in TABLE.items()} == dict.fromkeys(STARTS, GATES)


@each_gate
@each_start
def test_a_gate_is_its_formula(gate, start):
    z = torch.linspace(-8, 8, 161, dtype=torch.float64)
    expected = equations.GATES[gate, start](z)
    torch.testing.assert_close(find_gate(gate, start)(z), expected, rtol=1e-12, atol=1e-12)


@each_gate
@each_start
def test_a_slope_is_the_derivative_at_the_logits_that_gave_the_scales(gate, start):
    z = torch.linspace(-8, 8, 160, dtype=torch.float64, requires_grad=True)
    s = find_gate(gate, start)(z)
    (expected,) = torch.autograd.grad(s.sum(), z)
    found = SLOPES[start][gate](s.detach()).to(s.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_attention
@pytest.mark.parametrize("gate", ["relu6", "Sigmoid", "", None, torch.sigmoid])
def test_an_unknown_gate_is_an_error_that_lists_the_gates(build, gate):
    with pytest.raises(
        ArgumentError, match="gate must be one of sigmoid, hard_sigmoid, tanh, relu"
    ):
        build(6, gate=gate)


@each_attention
@pytest.mark.parametrize("start", ["zero", "Identity", None, True])
def test_an_unknown_start_is_an_error_that_lists_the_starts(build, start):
    with pytest.raises(ArgumentError, match="start must be one of paper, identity; got "):
        build(6, start=start)


@each_attention
@each_gate
@each_dtype
def test_an_identity_start_multiplies_by_exactly_one(build, gate, dtype):
    attention = build(6, gate=gate, start="identity", dtype=dtype)
    x = (100 * torch.randn(2, 6, 4, 4)).to(dtype)
    scales = attention.excitation(x)
    assert scales.dtype == dtype
    assert torch.equal(scales, torch.ones(2, 6, dtype=dtype))
    assert torch.equal(attention(x), x)


@each_attention
@each_gate
def test_an_identity_start_is_exact_under_autocast(build, gate):
    x = torch.randn(2, 6, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build(6, gate=gate, start="identity")(x), x)


@each_attention
@each_gate
def test_an_identity_start_learns_from_its_first_step(build, gate):
    attention = build(6, gate=gate, start="identity")
    start = {name: p.detach().clone() for name, p in attention.named_parameters()}
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
    x, target = torch.randn(4, 6, 4, 4).relu(), torch.randn(4, 6, 4, 4)
    for step in range(2):
        optimizer.zero_grad()
        (attention(x) - target).square().mean().backward()
        if step == 0:
            assert all(p.grad.abs().max() > 1e-4 for p in attention.last_layer.parameters())
        optimizer.step()
    moved = {name: not torch.equal(p, start[name]) for name, p in attention.named_parameters()}
    assert moved == dict.fromkeys(start, True)


@each_attention
@each_gate
def test_a_paper_start_draws_every_layer_at_random(build, gate):
    attention = build(6, gate=gate)
    assert all(
        parameter.count_nonzero() == parameter.numel() for parameter in attention.parameters()
    )
