"""How the regions behave as part of a graph: repeated, partial, checkpointed, transformed."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import attend
from tests.ops.regions import SMALL, build, draw, results

BACKENDS = ("reference", "cpp")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
either_order = pytest.mark.parametrize("attention_first", [True, False])


@each_backend
@either_order
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(backend, attention_first, shortcut, training):
    options = {"training": training, "attention_first": attention_first}
    case = build((2, 3, 3, 2), relu=True, shortcut=shortcut, momentum=0.0, **options)
    inputs = [draw((2, 3, 3, 2)).requires_grad_() for _ in range(1 + shortcut)]

    def run(x, *rest):
        return case.joint(x, rest[0] if shortcut else None, backend)

    assert torch.autograd.gradcheck(run, (*inputs,))
    for parameter in case.parameters():
        assert torch.autograd.gradcheck(lambda _, x=inputs: run(*x), (parameter,))


class Summed(SqueezeExcitation):
    """The gradient of its means comes expanded from one number."""

    def logits(self, means):
        return means.sum(1, keepdim=True) + self.fc2.weight[:, 0]


@each_backend
@pytest.mark.parametrize("alone", [True, False])
def test_gradcheck_of_logits_whose_gradient_has_other_strides(backend, alone):
    case = build((2, 5, 3, 3), relu=True)
    case.attention = Summed(5, 3).double()
    x = draw((2, 5, 3, 3)).requires_grad_()
    if alone:
        assert torch.autograd.gradcheck(lambda x: attend(x, case.attention, backend), x)
    else:
        assert torch.autograd.gradcheck(lambda x: case.joint(x, None, backend), x)


@each_backend
def test_gradcheck_of_attention_alone(backend):
    case = build((2, 3, 3, 2))
    x = draw((2, 3, 3, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attend(x, case.attention, backend), x)


@each_backend
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_are_bit_equal_whatever_the_number_of_threads(backend, last, threads):
    shape = (3, 70, 35, 9)
    case = build(shape, dtype=torch.float32, relu=True, shortcut=True)
    inputs = [draw(shape, torch.float32, last) for _ in range(3)]
    states = []
    for count in (threads, 1):
        torch.set_num_threads(count)
        other = copy.deepcopy(case)
        states.append(results(other, lambda x, s: other.joint(x, s, backend), *inputs))  # noqa: B023
    torch.set_num_threads(1)
    if backend == "cpp" or threads == 1:
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@each_backend
def test_frozen_parts_get_no_gradient_and_the_others_theirs(backend):
    case = build(SMALL)
    x, dy = draw(SMALL), draw(SMALL)
    expected = torch.autograd.grad(case.plain(x, None), case.parameters(), dy)
    found = torch.autograd.grad(case.joint(x, None, backend), case.parameters(), dy)
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-11)
    for parameter in case.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(case.plain(x, None), x, dy)
    (found,) = torch.autograd.grad(case.joint(x, None, backend), x, dy)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@each_backend
def test_backward_twice_where_the_graph_is_retained(backend):
    case = build(SMALL, relu=True)
    x, dy = draw(SMALL).requires_grad_(), draw(SMALL)
    y = case.joint(x, None, backend)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], first)


def test_a_second_derivative_is_refused():
    case = build(SMALL)
    x = draw(SMALL).requires_grad_()
    gradient = torch.autograd.grad(case.joint(x, None).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    case = build(SMALL, relu=True, momentum=0.0)
    x, dy = draw(SMALL).requires_grad_(), draw(SMALL)
    expected = torch.autograd.grad(case.joint(x, None), x, dy)[0]
    checkpoint(case.joint, x, None, use_reentrant=reentrant).backward(dy)
    assert torch.equal(x.grad, expected)


def test_transforms_see_plain_operations():
    case = build(SMALL, training=False)
    x = draw(SMALL)
    for function in (case.joint, lambda x, _: attend(x, case.attention)):
        value = torch.func.grad(lambda x: function(x, None).square().sum())(x)  # noqa: B023
        x.requires_grad_()
        expected = torch.autograd.grad(function(x, None).square().sum(), x)[0]
        x = x.detach()
        torch.testing.assert_close(value, expected)
        _, tangent = torch.func.jvp(lambda x: function(x, None), (x,), (torch.ones_like(x),))  # noqa: B023
        assert tangent.shape == x.shape


@each_backend
@pytest.mark.parametrize("end", [{}, {"relu": True}, {"relu": True, "shortcut": True}])
def test_what_is_kept_for_backward_is_what_plain_batch_norm_keeps(backend, end):
    """The input of the norm, the output of the ReLU, and at most ten (N, C) tensors beside."""
    shape = (2, 64, 28, 28)
    case = build(shape, dtype=torch.float32, **end)
    x, shortcut = (draw(shape, torch.float32).requires_grad_() for _ in range(2))
    shortcut = shortcut if case.shortcut else None

    def kept(function) -> int:
        storages = {}

        def pack(tensor):
            if not isinstance(tensor, nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function(x, shortcut)
        del y
        return sum(storages.values())

    def plain(x, shortcut):
        y = case.norm(x)
        y = y if shortcut is None else y + shortcut
        return y.relu() if case.relu else y

    assert kept(lambda *a: case.joint(*a, backend)) <= kept(plain) + 10 * 2 * 64 * 4


@pytest.mark.parametrize("attention", ["se", "eca"])
@pytest.mark.parametrize("training", [True, False])
@either_order
def test_the_whole_compiles_as_one_graph(attention, training, attention_first):
    options = {"relu": True, "shortcut": True, "momentum": None, "attention_first": attention_first}
    case = build(SMALL, attention, training=training, **options)
    other = copy.deepcopy(case)
    inputs = [draw(SMALL) for _ in range(3)]
    expected = results(case, case.plain, *inputs)
    compiled = torch.compile(other.joint, fullgraph=True, backend="aot_eager")
    found = results(other, lambda x, shortcut: compiled(x, shortcut, "auto"), *inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-11)
