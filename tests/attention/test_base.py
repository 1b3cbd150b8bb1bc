"""The common properties of both attentions: equation, gradients, shapes, starts, copies."""

import copy
import pickle

import pytest
import torch
from torch.func import functional_call

from composer_attn.errors import ArgumentError
from tests import equations
from tests.attention.attentions import (
    each_attention,
    each_gate,
    each_spatial,
    each_start,
    randomize,
)


@each_attention
@each_gate
@each_start
@each_spatial
def test_output_is_the_papers_equation(build, gate, start, spatial):
    attention = randomize(build(6, gate=gate, start=start, dtype=torch.float64))
    x = 1 + 2 * torch.randn(3, 6, *spatial, dtype=torch.float64)
    expected = equations.excitation(attention, x)
    assert expected.std() > 0.1
    torch.testing.assert_close(attention.excitation(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention(x), equations.scale(x, expected), rtol=1e-12, atol=1e-12)


@each_attention
@each_gate
@each_start
@each_spatial
def test_gradients_agree_with_finite_differences(build, gate, start, spatial):
    attention = randomize(build(4, gate=gate, start=start, dtype=torch.float64))
    x = torch.randn(2, 4, *spatial, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in attention.named_parameters()]

    def call(x, *parameters):
        return functional_call(attention, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *attention.parameters()))


@each_attention
@each_spatial
def test_excitation_has_one_scale_a_sample_and_channel(build, spatial):
    x = torch.randn(3, 6, *spatial)
    assert build(6).excitation(x).shape == (3, 6)
    assert build(6)(x).shape == x.shape


@each_attention
def test_samples_do_not_influence_each_other(build):
    attention, x = build(6).double(), torch.randn(3, 6, 4, 4, dtype=torch.float64)
    alone = torch.cat([attention(sample) for sample in x.split(1)])
    torch.testing.assert_close(attention(x), alone, rtol=1e-12, atol=1e-12)


@each_attention
@pytest.mark.parametrize(
    "shape", [(6,), (2, 6), (2, 6, 1, 1, 1, 1), (2, 5, 4, 4), (2, 4, 4, 6), (6, 4, 4)]
)
def test_other_shapes_are_errors_that_say_which_is_expected(build, shape):
    with pytest.raises(ValueError, match=r"over 6 channels.*\(N, 6, \*spatial\)") as caught:
        build(6)(torch.randn(shape))
    assert str(caught.value).endswith(f"got {shape}")


@each_attention
@pytest.mark.parametrize("channels", [0, -3, 2.0, True, "8", None])
def test_channels_other_than_a_whole_count_are_errors(build, channels):
    with pytest.raises(ArgumentError, match="channels must be a whole number >= 1; got "):
        build(channels)


@each_attention
@each_gate
@each_start
def test_resetting_parameters_is_like_building_again(build, gate, start):
    torch.manual_seed(1)
    new = build(6, gate=gate, start=start)
    used = randomize(build(6, gate=gate, start=start))
    torch.manual_seed(1)
    used.reset_parameters()
    for old, expected in zip(used.parameters(), new.parameters(), strict=True):
        assert torch.equal(old, expected)


@each_attention
def test_a_module_built_on_the_meta_device_is_materialized_by_a_reset(build):
    attention = build(6, start="identity", device="meta")
    assert {parameter.device.type for parameter in attention.parameters()} == {"meta"}
    attention.to_empty(device="cpu").reset_parameters()
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(attention(x), x)


@each_attention
@each_gate
@each_start
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(build, gate, start, clone):
    attention, x = randomize(build(6, gate=gate, start=start)), torch.randn(2, 6, 4)
    duplicate = clone(attention)
    assert torch.equal(duplicate(x), attention(x))
    assert all(
        one is not other
        for one, other in zip(duplicate.parameters(), attention.parameters(), strict=True)
    )


@each_attention
def test_printing_shows_channels_gate_and_start(build):
    shown = repr(build(6, gate="tanh", start="identity"))
    assert "6, gate=tanh, start=identity" in shown


@each_attention
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_have_the_dtype_asked_for(build, dtype):
    assert {parameter.dtype for parameter in build(6, dtype=dtype).parameters()} == {dtype}
