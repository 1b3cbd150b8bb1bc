"""Norms other than batch norm, before and after attention and activation, against the modules."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import (
    attend_then_normalize,
    normalize_activate,
    normalize_activate_attend,
    normalize_then_attend,
)
from composer_attn.ops.norm_kinds import kind_of
from tests.ops.regions import distance, draw
from tests.other_norms import NORMS, OTHERS, make

SHAPES = [(5, 6, 5, 7), (4, 6, 1, 1), (3, 6, 9, 4), (3, 6, 2, 1)]
MORE = [pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[2:]]


class Own(SqueezeExcitation):
    """Logits of a subclass, whose gradient is left to autograd."""

    def logits(self, means):
        return super().logits(means).tanh()


# What is computed of a map, a shortcut, a norm and an attention: by modules, and fused.
ORDERS = {
    "attention, norm": (
        lambda x, y, norm, se: norm(se(x)),
        lambda x, y, norm, se, b: attend_then_normalize(x, se, norm, b),
    ),
    "attention, norm, SiLU": (
        lambda x, y, norm, se: nn.functional.silu(norm(se(x))),
        lambda x, y, norm, se, b: attend_then_normalize(x, se, norm, b, activation="silu"),
    ),
    "attention, norm, addition, ReLU": (
        lambda x, y, norm, se: (norm(se(x)) + y).relu(),
        lambda x, y, norm, se, b: attend_then_normalize(x, se, norm, b, relu=True, shortcut=y),
    ),
    "norm, attention, addition": (
        lambda x, y, norm, se: se(norm(x)) + y,
        lambda x, y, norm, se, b: normalize_then_attend(x, se, norm, b, shortcut=y),
    ),
    "norm, SiLU, attention": (
        lambda x, y, norm, se: se(nn.functional.silu(norm(x))),
        lambda x, y, norm, se, b: normalize_activate_attend(x, norm, "silu", se, b),
    ),
    "norm, identity, attention": (
        lambda x, y, norm, se: se(norm(x)),
        lambda x, y, norm, se, b: normalize_activate_attend(x, norm, "identity", se, b),
    ),
    "norm, SiLU": (
        lambda x, y, norm, se: nn.functional.silu(norm(x)),
        lambda x, y, norm, se, b: normalize_activate(x, norm, "silu", b),
    ),
    "norm, addition, ReLU": (
        lambda x, y, norm, se: (norm(x) + y).relu(),
        lambda x, y, norm, se, b: normalize_activate(x, norm, "relu", b, shortcut=y),
    ),
}
_CHECKED = ("attention, norm, SiLU", "norm, attention, addition", "norm, SiLU, attention")
each_norm = pytest.mark.parametrize("name", OTHERS)
each_order = pytest.mark.parametrize("order", ORDERS)


def random_attention(kind=SqueezeExcitation) -> nn.Module:
    attention = kind(6, 3, dtype=torch.float64)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def results(function, norm, attention, inputs, dy) -> dict[str, torch.Tensor]:
    """Run forward and backward; return output, gradients, and the norm's state after it."""
    x, y = (each.detach().requires_grad_() for each in inputs)
    parameters = {f"norm.{n}": p for n, p in norm.named_parameters()}
    parameters |= {f"attention.{n}": p for n, p in attention.named_parameters()}
    wanted = {"x": x, "shortcut": y, **parameters}
    output = function(x, y, norm, attention)
    found = torch.autograd.grad(output, list(wanted.values()), dy, allow_unused=True)
    kept = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
    return {"y": output.detach(), **kept} | {n: b.clone() for n, b in norm.named_buffers()}


def compare(order, norm, attention, shape, backend="reference", last=False, steps=1) -> None:
    plain, fused = ORDERS[order]
    twins = copy.deepcopy((norm, attention))
    for _ in range(steps):
        *inputs, dy = (draw(shape, last=last, mean=each) for each in (1, 0, 0))
        expected = results(plain, norm, attention, inputs, dy)
        found = results(lambda *given: fused(*given, backend), *twins, inputs, dy)
        assert kind_of(norm).fits(inputs[0], norm)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert distance(found[key], value) < 1e-12, key


@each_norm
@each_order
@pytest.mark.parametrize("shape", [*SHAPES[:2], *MORE], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_running_statistics_agree(name, order, shape, training):
    torch.manual_seed(0)
    norm = make(name, 6).train(training)
    if name.startswith("instance") and shape[2:] == (1, 1):
        if "tracked" not in name:  # it refuses a single value, see below
            norm = make("instance, affine and tracked", 6)
        norm.eval()
    compare(order, norm, random_attention(), shape, steps=2)


@each_norm
@each_order
def test_backends_and_layouts_agree(name, order):
    torch.manual_seed(1)
    for last in (False, True):
        compare(order, make(name, 6), random_attention(), SHAPES[0], "cpp", last)


@each_norm
@each_order
def test_one_sample(name, order):
    torch.manual_seed(2)
    norm = make(name, 6)
    norm.ghost_batch_size = 1
    compare(order, norm, random_attention(), (1, 6, 5, 4))


@each_norm
@pytest.mark.parametrize("order", [order for order in ORDERS if "attention" in order])
def test_attentions_whose_gradient_is_left_to_autograd(name, order):
    torch.manual_seed(3)
    compare(order, make(name, 6), random_attention(Own), SHAPES[0], "cpp")


@pytest.mark.parametrize("name", [each for each in OTHERS if each != "frozen"])
@pytest.mark.parametrize("shape", [(4, 6, 9), (4, 6, 2, 3, 2)], ids=str)
def test_other_numbers_of_dimensions(name, shape):
    for order in ("attention, norm", "norm, SiLU, attention"):
        compare(order, make(name, 6, len(shape) - 2), random_attention(), shape)


@pytest.mark.parametrize("name", ["ghost", "group", "instance, affine and tracked", "frozen"])
@pytest.mark.parametrize(
    "order",
    [
        order if order in _CHECKED else pytest.param(order, marks=pytest.mark.slow)
        for order in ORDERS
    ],
)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradcheck(name, order, training):
    torch.manual_seed(4)
    norm, attention = make(name, 6).train(training), random_attention()
    if hasattr(norm, "batchnorm"):
        norm.batchnorm.momentum = 0.0  # the statistics stay from call to call
    norm.momentum = 0.0
    inputs = [draw((3, 6, 2, 1), mean=mean).requires_grad_() for mean in (1, 0)]
    function = partial(ORDERS[order][1], norm=norm, se=attention, b="cpp")
    assert torch.autograd.gradcheck(lambda x, y: function(x, y), inputs)
    for parameter in [*norm.parameters(), *attention.parameters()]:
        assert torch.autograd.gradcheck(lambda _: function(*inputs), parameter)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_ghost_batch_norm_in_any_mode_and_of_any_size(training, inner, size):
    torch.manual_seed(5)
    norm = make("ghost", 6).train(training)
    norm.batchnorm.train(inner)
    norm.ghost_batch_size = size
    if not training:
        norm.batchnorm.momentum = None
    compare("norm, SiLU, attention", norm, random_attention(), (5, 6, 3, 4), steps=3)


REFUSED = {
    "fewer samples than a group": (
        lambda: make("ghost, one group", 6), (2, 6, 3, 3), "ghost_batch_size 3"
    ),
    "a group of one value": (lambda: make("ghost", 6), (3, 6, 1, 1), "more than 1 value"),
    "one value of an instance": (lambda: make("instance", 6), (3, 6, 1, 1), "more than 1 spatial"),
    "one value of a group": (lambda: make("group, each", 6), (1, 6, 1, 1), "more than 1 value"),
    "one value of a synchronized one": (lambda: make("sync", 6), (1, 6, 1, 1), "more than 1 value"),
    "other channels": (lambda: make("group", 9), (3, 6, 3, 3), "(?i)shape|channels|size"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@each_order
def test_what_a_module_refuses_is_refused_alike(case, order):
    build, shape, message = REFUSED[case]
    norm, x = build(), draw(shape)
    with pytest.raises((ValueError, RuntimeError), match=message):
        ORDERS[order][1](x, torch.zeros_like(x), norm, random_attention(), "reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_norm
@pytest.mark.parametrize("order", ["attention, norm", "norm, SiLU, attention"])
def test_other_precisions_are_no_worse_than_the_modules(dtype, name, order):
    torch.manual_seed(6)
    norm, attention = make(name, 6), random_attention()
    inputs = [draw((4, 6, 9, 9), mean=mean) for mean in (1, 0)]
    plain, fused = ORDERS[order]
    exact = plain(*inputs, copy.deepcopy(norm), attention)
    lower = [each.to(dtype) for each in (*inputs, norm, attention)]
    x, y, norm, attention = lower
    expected = plain(x, y, copy.deepcopy(norm), attention)
    found = fused(x, y, norm, attention, "cpp")
    assert found.dtype == expected.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 2 * distance(expected, exact) + 2**-8
    assert distance(found, exact) <= limit


@pytest.mark.parametrize("name", NORMS)
def test_autocast_gives_the_dtype_that_the_modules_give(name):
    norm, attention = make(name, 6, dtype=torch.float32), random_attention().float()
    x = draw((4, 6, 5, 5)).bfloat16()
    for plain, fused in ORDERS.values():
        with torch.autocast("cpu", torch.bfloat16):
            expected = plain(x, x, copy.deepcopy(norm), attention)
            found = fused(x, x, copy.deepcopy(norm), attention, "reference")
        assert found.dtype == expected.dtype
        assert distance(found, expected) < 0.1


@each_norm
def test_an_infinite_value_spreads_no_further(name):
    norm, attention = make(name, 6), random_attention()
    x, y, dy = (draw((4, 6, 5, 5), mean=mean) for mean in (1, 0, 0))
    x[0, 0, 1, 1] = torch.inf
    for plain, fused in ORDERS.values():
        given = (copy.deepcopy(norm), attention, (x, y), dy)
        expected = results(plain, *given)
        found = results(partial(fused, b="cpp"), copy.deepcopy(norm), *given[1:])
        for key, value in expected.items():
            finite = value.isfinite()
            assert finite.sum() == 0 or distance(found[key][finite], value[finite]) < 1e-12, key


@each_norm
def test_batched_gradients(name):
    norm, attention = make(name, 6), random_attention()
    x = draw((3, 6, 3, 3)).requires_grad_()
    for plain, fused in ORDERS.values():
        outputs = [plain(x, x, norm, attention), fused(x, x, norm, attention, "cpp")]
        dy = torch.randn(2, *x.shape, dtype=x.dtype)
        expected, found = (torch.autograd.grad(y, x, dy, is_grads_batched=True)[0] for y in outputs)
        assert distance(found, expected) < 1e-12
