"""Autograd functions and contexts with less overhead do what torch's do."""

import pytest
import torch
from torch import Tensor, nn

from composer_attn import fuse_attention
from composer_attn.functional import apply_eca
from composer_attn.ops.recorded import PlainArithmetic, Recorded, differentiable_once


class Squared(Recorded):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @differentiable_once
    def backward(ctx, dy: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        (x,) = ctx.saved_tensors
        return 2 * x * dy


def test_a_function_is_recorded():
    x = torch.randn(5, requires_grad=True)
    y = Squared.apply(x)
    assert torch.equal(y, x * x)
    assert y.grad_fn is not None
    y.sum().backward()
    assert torch.equal(x.grad, 2 * x)


def test_it_is_differentiable_once():
    x = torch.randn(5, requires_grad=True)
    (dx,) = torch.autograd.grad(Squared.apply(x).square().sum(), x, create_graph=True)
    assert torch.allclose(dx, 4 * x**3)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_functorch_says_what_is_missing():
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: Squared.apply(x).sum())(torch.randn(5))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_arithmetic_is_plain_and_the_modes_come_back(recorded, autocast, fails):
    x, weight = torch.randn(4, 4), torch.randn(4, 4, requires_grad=True)

    def arithmetic():
        with PlainArithmetic(x):
            y = x @ weight
            assert y.dtype == torch.float32
            assert not y.requires_grad
            if fails:
                raise KeyError

    with torch.set_grad_enabled(recorded), torch.autocast("cpu", enabled=autocast):
        if fails:
            with pytest.raises(KeyError):
                arithmetic()
        else:
            arithmetic()
        assert torch.is_grad_enabled() is recorded
        assert torch.is_autocast_enabled("cpu") is autocast
        assert (x @ weight).dtype == (torch.bfloat16 if autocast else torch.float32)


def test_a_tensor_that_outlived_its_transform_is_computed_as_unfused():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()).double().eval()
    apply_eca(model, min_channels=1)
    kept = []

    def keep(x: Tensor) -> Tensor:
        kept.append(2 * x)
        return x.sum()

    torch.func.grad(keep)(torch.randn(2, 3, 4, 4, dtype=torch.double))
    plain = model(kept[0])
    fuse_attention(model)
    assert torch.allclose(model(kept[0]), plain, rtol=1e-12)
