"""Gradients of many outputs at once: vectorized jacobians, and batches of gradients."""

import copy

import pytest
import torch
from torch.autograd.functional import jacobian

from composer_attn.ops import attend
from tests.ops.regions import ATTENTIONS, build, draw
from tests.ops.test_own_logits import Own

SHAPE = (2, 6, 3, 2)
KINDS = [*ATTENTIONS, "own"]
each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
each_place = pytest.mark.parametrize("place", ["alone", "first", "last"])
each_kind = pytest.mark.parametrize("kind", KINDS)


def functions(kind: str, place: str, backend: str, training: bool, **end):
    """Return the plain and the joint function of an input, and the parameters of each."""
    options = {"training": training, "attention_first": place == "first"} | end
    case = build(SHAPE, "se" if kind == "own" else kind, momentum=0.0, **options)
    if kind == "own":
        case.attention = Own()
    other = copy.deepcopy(case)
    if place == "alone":
        plain, joint = case.attention, lambda x: attend(x, other.attention, backend)
    else:
        added = draw(SHAPE) if case.shortcut else None
        plain = lambda x: case.plain(x, added)  # noqa: E731
        joint = lambda x: other.joint(x, added, backend)  # noqa: E731
    return (plain, case), (joint, other)


@each_backend
@each_place
@each_kind
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("end", [{}, {"relu": True}, {"relu": True, "shortcut": True}])
def test_a_batch_of_gradients_is_each_gradient(backend, place, kind, training, end):
    pairs = functions(kind, place, backend, training, **end)
    x, many, found = draw(SHAPE), torch.randn(4, *SHAPE, dtype=torch.float64), []
    for function, case in pairs:
        x = x.detach().requires_grad_()
        wanted, y = [x, *case.attention.parameters()], function(x)
        batch = torch.autograd.grad(
            y, wanted, many, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
        single = [torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True)
                  for dy in many]  # fmt: skip
        for together, each in zip(batch, zip(*single, strict=True), strict=True):
            assert (together is None) == (each[0] is None)
            if together is not None:
                torch.testing.assert_close(together, torch.stack(each), rtol=1e-10, atol=1e-10)
        found.append([g for g in batch if g is not None])
        of_x = torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True))  # noqa: B023
        torch.testing.assert_close(of_x(many)[0], batch[0], rtol=1e-10, atol=1e-10)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@each_backend
@each_place
@each_kind
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_a_vectorized_jacobian_is_that_of_plain_torch(backend, place, kind, strategy):
    (plain, _), (joint, _) = functions(kind, place, backend, training=False)
    x = draw(SHAPE)
    expected = jacobian(plain, x)
    torch.testing.assert_close(jacobian(joint, x), expected, rtol=1e-10, atol=1e-10)
    found = jacobian(joint, x, vectorize=True, strategy=strategy)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
