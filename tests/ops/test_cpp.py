"""The C++ passes against the reference, by shapes that divide into vectors in every way."""

import pytest
import torch

from composer_attn.ops.activations import ACTIVATIONS, Activation, find_activation, phi
from composer_attn.ops.backends import activated_cpp, cpp
from composer_attn.ops.backends import activated_reference as activated
from composer_attn.ops.backends import reference as passes
from tests.ops.calls import (
    ALLOWED,
    calls_between,
    calls_of_activations,
    calls_of_passes,
    errors,
    infinite_calls,
    spread,
    strided,
)

# Rows in NCHW of 1 value, shorter than a vector, as long, longer by a part; as many rows as lanes
# in a vector, fewer, and more by a part.
SHAPES = [
    *[(2, 8, 1, 1), (3, 37, 1, 1), (4, 16, 1, 3), (3, 37, 2, 2), (1, 5, 2, 7), (5, 7, 3, 5)],
    *[(2, 16, 4, 4), (3, 6, 4, 5), (1, 70, 9, 9)],
    (1, 70, 16, 16),  # a single sample that is large enough to be divided, in channels last
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_pass_agrees_with_the_reference(shape, last, dtype):
    calls = calls_of_passes(shape, dtype, last, "cpu")
    found = errors(calls, cpp, passes)
    assert {name: error for name, error in found.items() if not error <= ALLOWED[dtype]} == {}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_pass_of_an_activation_agrees_with_the_reference(shape, last, dtype):
    calls = calls_of_activations(shape, dtype, last, "cpu")
    found = errors(calls, activated_cpp, activated)
    assert len(found) == 70
    assert {name: error for name, error in found.items() if not error <= ALLOWED[dtype]} == {}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_activation_keeps_its_digits_everywhere(name, dtype):
    z = torch.cat([torch.linspace(-100, 100, 4001), torch.linspace(-7, 7, 4001)]).to(dtype)
    z = torch.cat([z, torch.tensor([0.0, -3, 3, 6, 1e-6, -1e-6, 1e4, -1e4], dtype=dtype)])
    x, one = z.view(1, 1, -1), torch.ones(1, 1, dtype=dtype)
    activation, zero = find_activation(name), torch.zeros(1, 1, dtype=dtype)
    exact = z.double().requires_grad_()
    expected = phi(exact, activation)
    (of_exact,) = torch.autograd.grad(expected.sum(), exact)
    y = activated_cpp.activate(x, one, zero, one, None, activation)
    numbers = (one, zero, one, zero, zero, zero, None)
    dx = activated_cpp.activated_gradient(torch.ones_like(x), x, *numbers, activation)
    digits = 2e-6 if dtype == torch.float32 else 1e-14
    small = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(y[0, 0].double(), expected, rtol=digits, atol=small + digits / 10)
    torch.testing.assert_close(dx[0, 0].double(), of_exact, rtol=digits, atol=digits)
    if dtype == torch.float64:
        return
    # Near 0 too, where exp(z) - 1 would lose them.
    near = z.abs() < 0.01
    torch.testing.assert_close(y[0, 0, near].double(), expected[near], rtol=digits, atol=small)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [-0.5, 1.5]), (1.0, [0.0, 1.0])])
@pytest.mark.parametrize("backend", [activated, activated_cpp])
def test_the_derivative_of_hardswish_at_its_ends_is_that_of_either_torch(backend, alpha, expected):
    x = torch.tensor([[[-3.0, 3.0] * 12]])
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    numbers = (one, zero, one, zero, zero, zero, None, Activation("hardswish", alpha))
    dx = backend.activated_gradient(torch.ones_like(x), x, *numbers)
    torch.testing.assert_close(dx, torch.tensor([[expected * 12]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_and_infinity_pass_through_an_activation_as_through_torchs(name):
    z = torch.tensor([torch.nan, torch.inf, 0.0] * 8)
    one, zero, activation = torch.ones(1, 1), torch.zeros(1, 1), find_activation(name)
    y = activated_cpp.activate(z.view(1, 1, -1), one, zero, one, None, activation)
    expected = phi(z, activation)
    if name == "gelu":  # torch makes NaN of it, where it computes a vector at a time
        expected[z == torch.inf] = torch.inf
    torch.testing.assert_close(y.flatten(), expected, equal_nan=True)


@pytest.mark.parametrize("size", [(1, 5), (4, 64), (9, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_lies_between_agrees_with_the_reference(size, dtype):
    found = errors(calls_between(*size, dtype, "cpu"), cpp, passes)
    assert {name: error for name, error in found.items() if not error <= ALLOWED[dtype]} == {}


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_function_takes_tensors_of_any_strides(last, dtype):
    calls = strided(calls_of_passes((4, 8, 3, 5), dtype, last, "cpu"))
    of_activations = calls_of_activations((4, 8, 3, 5), dtype, last, "cpu", ("silu",))
    found = errors(strided(of_activations), activated_cpp, activated)
    assert {name: error for name, error in found.items() if not error <= ALLOWED[dtype]} == {}
    if dtype == torch.float64:
        calls |= strided(calls_between(4, 8, dtype, "cpu"))
    found = errors(calls, cpp, passes)
    assert len(found) > 40
    assert {name: error for name, error in found.items() if not error <= ALLOWED[dtype]} == {}


def test_infinite_values_keep_to_themselves():
    found = spread(infinite_calls(3, 6, "cpu"), cpp, passes)
    assert {name: error for name, error in found.items() if not error <= 1e-12} == {}


def test_numbers_of_another_dtype_or_shape_are_read_as_what_they_are():
    x = torch.randn(3, 5, 4, 4)
    scale, shift = torch.randn(3, 1).double(), torch.randn(5).bfloat16()
    expected = scale.float()[..., None, None] * x + shift.float()[:, None, None]
    torch.testing.assert_close(cpp.affine(x, scale, shift, None, False), expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_values_of_a_divided_sample_keep_to_themselves(value):
    x = torch.randn(1, 70, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = passes.moments(x)
    x[0, 3, 9, 9] = value
    for found, known, wanted in zip(cpp.moments(x), expected, (value, torch.nan), strict=True):
        torch.testing.assert_close(found[0, 3], torch.tensor(wanted), equal_nan=True)
        others = torch.arange(70) != 3
        torch.testing.assert_close(found[:, others], known[:, others])


def test_a_large_mean_of_a_divided_sample_costs_no_digits():
    x = torch.randn(1, 70, 16, 16).contiguous(memory_format=torch.channels_last)
    x += 1000 * torch.randn(70, 1, 1)
    _, variance = cpp.moments(x)
    _, exact = passes.moments(x.double())
    torch.testing.assert_close(variance.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("shape", "last"), [((64, 130, 2, 2), False), ((1, 130, 16, 16), True)])
def test_sums_do_not_depend_on_the_number_of_threads(shape, last):
    calls = calls_of_passes(shape, torch.float32, last, "cpu")
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            results.append([cpp.moments(calls["moments"][1]), *_sums(calls)])
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert all(map(torch.equal, one, three))


def _sums(calls):
    return [cpp.gradient_sums(*call[1:]) for name, call in calls.items() if "sums" in name]
