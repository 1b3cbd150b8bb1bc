"""A long run that attends, copies and detaches again and again holds on to nothing."""

import copy
import gc
import os
import subprocess
import sys
import tracemalloc
import weakref

import psutil
import pytest
import torch
from torch import nn

from composer_attn.functional import attended_modules, detach_attention
from composer_attn.surgery import attend
from tests.networks import NETWORKS
from tests.surgeries import SURGERIES, each_surgery

NETWORK = NETWORKS["residual"]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def cycle(surgery, model, optimizer, x, steps=20):
    """Attend, train, copy, detach from both."""
    surgery.apply(model, optimizers=optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    other = copy.deepcopy(model)
    detach_attention(other)
    detach_attention(model, optimizers=optimizer)


def held(model, optimizer) -> dict:
    """Count everything that a leak would add to."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "modules": sum(isinstance(thing, nn.Module) for thing in objects),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in objects),
        "attended classes": len(attend._attended_classes),
        "subclasses": len(nn.Conv2d.__subclasses__()),
        "hooks": sum(len(getattr(m, name)) for m in model.modules() for name in _HOOKS),
        "state": len(optimizer.state),
        "parameters": sum(len(group["params"]) for group in optimizer.param_groups),
        "file descriptors": len(os.listdir(f"/proc/{os.getpid()}/fd")),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SURGERIES)
def test_2000_steps_between_surgeries_hold_on_to_nothing(name):
    # In a separate process: threads that other tests left running allocate memory meanwhile.
    program = f"from {__name__} import check_2000_steps; check_2000_steps({name!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_2000_steps(name):
    surgery = SURGERIES[name]
    model, x = NETWORK.build(), NETWORK.batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    # From the start: what is freed and allocated again later would count as grown.
    tracemalloc.start()
    for _ in range(20):
        cycle(surgery, model, optimizer, x)
    before, resident = held(model, optimizer), psutil.Process().memory_info().rss
    allocated, _ = tracemalloc.get_traced_memory()
    for _ in range(100):
        cycle(surgery, model, optimizer, x)
    after = held(model, optimizer)
    grown = tracemalloc.get_traced_memory()[0] - allocated
    tracemalloc.stop()
    assert after == before
    # A single attention left behind in each cycle would be 100 of over 1 KiB each.
    # Torch's own objects come to 30 KiB, whether or not there is a surgery.
    assert grown < 100 * 2**10
    assert psutil.Process().memory_info().rss - resident < 2**24
    assert next(iter(optimizer.state.values()))["step"] == 20 * 120


@each_surgery
def test_a_class_lives_as_long_as_a_module_has_it(surgery):
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(Own(3, 16, 3))
    surgery.apply(model)
    attended_class = weakref.ref(type(model[0]))
    other = copy.deepcopy(model)
    assert type(other[0]) is attended_class()
    detach_attention(model)
    del other
    gc.collect()
    assert attended_class() is None
    assert not any(original is Own for original, _ in attend._attended_classes)


@each_surgery
def test_a_model_that_is_let_go_is_freed_with_its_attentions(surgery):
    model = NETWORK.build()
    surgery.apply(model)
    left = [weakref.ref(module) for module in (model, *attended_modules(model).values())]
    del model
    gc.collect()
    assert [reference() for reference in left] == [None] * 3
