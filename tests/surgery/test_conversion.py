"""Modules are moved like ``Module.to`` does it, also while their tensors are fake."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from composer_attn.surgery.conversion import convert, is_fake


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("phase", torch.zeros(3, dtype=torch.complex64))
        self.register_buffer("nothing", None)


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_but_integers_are_converted(mode, dtype):
    expected = {name: t.dtype for name, t in Tied().to("cpu", dtype).state_dict().items()}
    with mode():
        module = Tied()
        assert is_fake() is (mode is FakeTensorMode)
        assert convert(module, "cpu", dtype) is module
    assert {name: t.dtype for name, t in module.state_dict().items()} == expected
    assert expected["calls"] == torch.int64
    assert module.second.weight is module.first.weight
    assert module.nothing is None
    assert isinstance(module.first.weight, nn.Parameter)
    assert module.first.weight.requires_grad
    assert not module.first.bias.requires_grad


def test_fake_tensors_that_need_no_conversion_stay_the_same_objects():
    with FakeTensorMode():
        module = Tied()
        before = [*module.parameters(), module.mean, module.calls]
        convert(module, "cpu", torch.float32)
    after = [*module.parameters(), module.mean, module.calls]
    assert [id(tensor) for tensor in after] == [id(tensor) for tensor in before]
