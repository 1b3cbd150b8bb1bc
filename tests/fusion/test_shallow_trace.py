"""Planning a fusion traces forwards without side effects on models or other threads."""

import copy
import random
import threading

import numpy
import pytest
import torch
from torch import nn

from composer_attn.functional import apply_eca, fuse_attention
from composer_attn.surgery.shallow_trace import trace_children


class Meter:
    def __init__(self):
        self.count, self.seen = 0, []

    def update(self, value):
        self.count += 1
        self.seen.append(value)


class Noting(nn.Module):
    """A forward that writes to everything a module can hold."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.log, self.names, self.count = [], {"inner": []}, set(), 0
        self.meter, self.last = Meter(), None

    def forward(self, x):
        self.steps.add_(1)
        self.calls.append(1)
        self.log["inner"].append(torch.rand(2))
        self.names.add(random.random())
        self.count += 1
        self.meter.update(numpy.random.rand())
        self.conv.times = self.norm.seen = 1
        self.last = self.conv(x)
        return self.norm(self.last).relu()


def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def own_attributes(module):
    return {name for name in vars(module) if not name.startswith("_attn")}


def test_a_forward_is_traced_without_side_effects():
    model = nn.Sequential(Noting(), nn.Conv2d(16, 3, 1))
    apply_eca(model, min_channels=16)
    before = {name: own_attributes(module) for name, module in model.named_modules()}
    numbers = copy.deepcopy(model.state_dict()), states()
    (site,) = fuse_attention(model, "reference").fused
    assert (site.norm, site.activation) == ("0.norm", "0.relu")
    assert states() == numbers[1]
    for name, tensor in numbers[0].items():
        assert torch.equal(model.state_dict()[name], tensor), name
    noting = model[0]
    assert (noting.calls, noting.log, noting.names, noting.count) == ([], {"inner": []}, set(), 0)
    assert (noting.meter.count, noting.meter.seen, noting.last) == (0, [], None)
    for name, module in model.named_modules():
        assert own_attributes(module) == before[name], name


class Normalizing(nn.Module):
    """Changes its weights at each call, as they did before there were parametrizations."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)

    def forward(self, x):
        with torch.no_grad():
            self.conv.weight.div_(self.conv.weight.norm())
        return self.norm(self.conv(x))


def test_a_forward_that_changes_weights_is_not_traced_and_the_plan_says_why():
    model = Normalizing()
    apply_eca(model, min_channels=16)
    weight = model.conv.weight.clone()
    (site,) = fuse_attention(model, "reference").sites
    assert site.reason.startswith("the model cannot be traced: its forward changes a tensor")
    assert torch.equal(model.conv.weight, weight)


def test_a_forward_that_fails_leaves_torch_as_it_was():
    class Failing(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    call = nn.Module.__call__
    with pytest.raises(KeyboardInterrupt):
        trace_children(Failing(), True)
    assert nn.Module.__call__ is call
    assert nn.Linear(2, 3)(torch.ones(1, 2)).shape == (1, 3)


def test_children_are_recorded_and_keep_what_they_are():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), nn.Tanh())])
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x, *rest, flag=True):
            for layer in self.layers:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer[:1](x)
            return x * self.scale + self.layers[0].weight.shape[0]

    graph = trace_children(Asking(), True)
    called = [node.target for node in graph.nodes if node.op in ("call_module", "get_attr")]
    assert called == ["layers.0", "layers.1.0", "scale"]


def test_other_threads_call_their_models_meanwhile():
    other, x, stop, found = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4), [], []
    expected = other(x)

    def calls():
        while not stop:
            found.append(torch.equal(other(x), expected))

    thread = threading.Thread(target=calls)
    thread.start()
    model = Noting()
    for _ in range(200):
        trace_children(model, True)
    stop.append(1)
    thread.join()
    assert len(found) > 10
    assert all(found)
