"""In the precisions people train in, errors are no larger than those of plain torch."""

import copy

import pytest
import torch

from composer_attn.ops import attend
from tests.ops.regions import build, distance, draw, results

SHAPE = (4, 40, 9, 11)
each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
each_layout = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
either_order = pytest.mark.parametrize("attention_first", [True, False])


def errors(case, backend, dtype, last, mean=3.0, std=1.0) -> dict[str, tuple[float, float]]:
    """Errors against float64, of the two modules and of the region, for each result."""
    exact, joint = copy.deepcopy(case), copy.deepcopy(case)
    for module in (exact.attention, exact.norm):
        module.double()
    x = (draw(SHAPE, last=last, mean=0) * std + mean).to(dtype)
    shortcut, dy = (draw(SHAPE, dtype, last, mean=0) for _ in range(2))
    found = {
        "exact": results(exact, exact.plain, x.double(), shortcut.double(), dy.double()),
        "plain": results(case, case.plain, x, shortcut, dy),
        "joint": results(joint, lambda x, s: joint.joint(x, s, backend), x, shortcut, dy),
    }
    assert all(v.dtype == found["plain"][name].dtype for name, v in found["joint"].items())
    return {name: (distance(found["plain"][name], right), distance(found["joint"][name], right))
            for name, right in found["exact"].items()}  # fmt: skip


def assert_as_good(found, rounding: float):
    for name, (plain, joint) in found.items():
        # A rounding of the result is allowed where the modules happen to hit it exactly; on a
        # CPU, they accumulate float32 in float64.
        assert joint <= 1.5 * plain + rounding, (name, plain, joint)


@each_backend
@each_layout
@either_order
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shortcut", [True, False])
def test_errors_against_float64(backend, last, attention_first, dtype, shortcut):
    options = {"attention_first": attention_first, "shortcut": shortcut}
    case = build(SHAPE, dtype=torch.float32, **options)
    assert_as_good(errors(case, backend, dtype, last), max(torch.finfo(dtype).eps / 2, 3e-6))


@each_backend
@each_layout
@either_order
def test_a_mean_of_a_thousand_deviations(backend, last, attention_first):
    case = build(SHAPE, dtype=torch.float32, attention_first=attention_first)
    for parameter in case.attention.parameters():
        parameter.data.mul_(1e-3)  # else the gate is saturated
    assert_as_good(errors(case, backend, torch.float32, last, mean=1e3), 1e-4)
    small = build(SHAPE, dtype=torch.float32, attention_first=attention_first, eps=1e-12)
    found = errors(small, backend, torch.float32, last, mean=1.0, std=1e-3)
    # Here the gradients of the attention's parameters are rounding errors, the modules' as well.
    del found["p0"], found["p1"]
    assert_as_good(found, 1e-4)


@each_backend
@each_layout
def test_variance_of_a_thousand_deviations_off_zero(backend, last):
    from composer_attn.ops.backends.table import find_passes

    x = (draw((2, 20, 60, 60), last=last, mean=0) + 1e3).float()
    mean, variance = find_passes(backend, x).moments(x)
    exact = x.double().flatten(2)
    torch.testing.assert_close(variance.double(), exact.var(2, correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean.double(), exact.mean(2), rtol=1e-7, atol=0)


@each_backend
@either_order
def test_whole_model_in_bfloat16(backend, attention_first):
    case = build(SHAPE, dtype=torch.bfloat16, attention_first=attention_first)
    x, dy = draw(SHAPE, torch.bfloat16), draw(SHAPE, torch.bfloat16, mean=0)
    exact, joint = copy.deepcopy(case), copy.deepcopy(case)
    exact.attention.double(), exact.norm.double()
    right = results(exact, exact.plain, x.double(), None, dy.double())
    found = results(joint, lambda x, s: joint.joint(x, s, backend), x, None, dy)
    for name, value in results(case, case.plain, x, None, dy).items():
        assert found[name].dtype == value.dtype
        allowed = 1.5 * distance(value, right[name]) + torch.finfo(torch.bfloat16).eps
        assert distance(found[name], right[name]) <= allowed, name


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(backend, dtype):
    case = build(SHAPE, dtype=torch.float32, relu=True)
    x, dy = draw(SHAPE, dtype).requires_grad_(), draw(SHAPE, dtype, mean=0)
    with torch.autocast("cpu", dtype):
        y, expected = case.joint(x, None, backend), case.plain(x, None)
        alone = attend(x, case.attention, backend)
    assert y.dtype == expected.dtype
    assert alone.dtype == dtype
    y.backward(dy)
    assert x.grad.dtype == dtype
    assert {p.grad.dtype for p in case.parameters()} == {torch.float32}
    # Autocast rounds the layers of an attention too; computed jointly they are not.
    exact = copy.deepcopy(case)
    exact.attention.double(), exact.norm.double()
    right = exact.plain(x.double(), None)
    allowed = 1.5 * distance(expected, right) + torch.finfo(dtype).eps
    assert distance(y, right) <= allowed


@each_backend
@each_layout
def test_nan_and_infinity_are_passed_on(backend, last):
    case = build(SHAPE, dtype=torch.float32, relu=True, attention="eca")
    for value in (float("nan"), float("inf")):
        x = draw(SHAPE, torch.float32, last)
        x[1, 7, 3, 3] = value
        y = case.joint(x, None, backend)
        assert torch.equal(y.isnan(), case.plain(x, None).isnan())
        assert y[:, 7].isnan().all()
