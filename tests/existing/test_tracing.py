"""Recognizing what a module does has no side effects, and failures are reported."""

import gc
import random
import sys
import threading
import weakref
from collections import Counter, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # as others have it
from torch import nn

from composer_attn import register_existing_attention
from composer_attn.errors import ArgumentError, PlacementError
from composer_attn.functional import apply_eca, plan_eca, remove_attention
from composer_attn.surgery.existing_attention import recording
from tests import snapshots
from tests.existing.channel import SE_Block, SEWithNorm
from tests.existing.table import CHANNELS, Network, each_written, network
from tests.surgeries import names


class Busy(SE_Block):
    """Counts, collects and draws whenever it runs; and hooks watch it."""

    def __init__(self, c):
        super().__init__(c)
        self.conv = nn.Conv2d(c, c, 1)
        self.calls, self.kinds, self.last = [], Counter(), deque(maxlen=3)
        self.table = {"seen": [0], "nested": {"n": 0}}
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(c))

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        self.kinds[x.dtype] += 1
        self.last.append(x.sum())
        self.table["seen"][0] += 1
        self.table["nested"]["n"] += 1
        self.count += 1
        self.mean.mul_(0.9).add_(x.mean((0, 2, 3)))
        with torch.no_grad():
            self.conv.weight.mul_(0.99)
            self.conv.weight.data = torch.renorm(self.conv.weight.data, 2, 0, 1)
        self.noise = torch.rand(3) + random.random() + np.random.rand()
        return super().forward(self.conv(x)) if self.training else super().forward(x)


def state(module):
    plain = (
        module.calls, dict(module.kinds), list(module.last), module.table, hasattr(module, "noise")
    )  # fmt: skip
    return repr(plain), snapshots.of_model(module)


def test_tracing_leaves_a_module_and_every_random_state_as_they_were():
    model = Network(Busy(CHANNELS))
    model.train()
    hooked = []
    model.own.register_forward_hook(lambda *_: hooked.append(1))
    model.own.conv.register_forward_pre_hook(lambda *_: hooked.append(2))
    before = state(model.own)
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    assert names(plan_eca(model, replace=True).chosen) == ("own",)
    assert names(plan_eca(model, min_channels=1).chosen) == ("conv", "last")
    assert state(model.own) == before
    assert model.training
    assert hooked == []
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == draws[1:]


@each_written
def test_plans_change_nothing(written):
    model, x = network(written)
    model.train()
    before = snapshots.of_model(model)
    plan_eca(model, replace=True)
    plan_eca(model, min_channels=1, example=x)
    assert snapshots.of_model(model) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_callers_modes_make_no_difference(mode):
    recording_of = Network(SEWithNorm(CHANNELS))
    with mode(), torch.autocast("cpu", torch.bfloat16):
        assert names(plan_eca(recording_of, replace=True).chosen) == ("own",)
    with torch.device("meta"):
        model = Network(SEWithNorm(CHANNELS))
        assert names(plan_eca(model, replace=True).chosen) == ("own",)


def test_modules_of_one_structure_are_recorded_once(monkeypatch):
    runs = []
    once = recording._record_once
    monkeypatch.setattr(
        recording, "_record_once", lambda *given: runs.append(given) or once(*given)
    )

    class Mine(SE_Block):  # a class that no other test has had traced
        pass

    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *(Mine(CHANNELS) for _ in range(30)))
    assert len(plan_eca(model, replace=True).chosen) == 30
    first = len(runs)
    assert 0 < first < 10
    plan_eca(model, replace=True)
    assert len(runs) == first
    model.append(Mine(2 * CHANNELS))  # another width
    model[1].excitation[1] = nn.Conv2d(1, 1, 1)  # another child, which cannot take its place
    assert len(plan_eca(model, replace=True).chosen) == 30
    assert len(runs) > first


def test_a_forward_replaced_on_the_class_is_analyzed_again(monkeypatch):
    class Mine(SE_Block):
        pass

    model = Network(Mine(CHANNELS))
    assert names(plan_eca(model, replace=True).chosen) == ("own",)
    monkeypatch.setattr(Mine, "forward", lambda self, x: torch.relu(x))
    with pytest.raises(PlacementError):
        plan_eca(model, replace=True)


def test_what_is_remembered_keeps_no_class_alive():
    class Mine(SE_Block):
        pass

    plan_eca(Network(Mine(CHANNELS)), replace=True)
    alive = weakref.ref(Mine)
    del Mine
    gc.collect()
    assert alive() is None


def test_other_threads_continue_meanwhile():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.randn(1, 3, 4, 4)
    expected, troubles, stop = model(x), [], threading.Event()

    def run():
        while not stop.is_set():
            if not torch.equal(model(x), expected):
                troubles.append("other numbers")

    thread = threading.Thread(target=run)
    thread.start()
    for width in range(8, 40):
        plan_eca(nn.Sequential(nn.Conv2d(3, width, 1), SE_Block(width)), replace=True)
    stop.set()
    thread.join()
    assert troubles == []


def test_no_reference_is_lost_or_kept():
    model = Network(SEWithNorm(CHANNELS))
    plan_eca(model, replace=True)
    gc.collect()
    before = sys.getrefcount(None)
    for width in range(8, 108, 4):
        plan_eca(nn.Sequential(nn.Conv2d(3, width, 1), SE_Block(width)), replace=True)
    gc.collect()
    assert sys.getrefcount(None) > before - 20


class Secret(nn.Module):
    """Looks at values."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        if x.max() < -1e9:
            return x
        return x * torch.sigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))


class MySqueezeExciteUnit(Secret):
    pass


class SELayer(Secret):
    pass


def test_a_name_is_a_hint_where_a_forward_cannot_be_traced_and_the_plan_says_so():
    model = Network(MySqueezeExciteUnit(CHANNELS))
    plan = plan_eca(model, min_channels=1)
    assert names(plan.chosen) == ("conv", "last")
    (site,) = plan.passed_over
    assert site.reason.startswith("inside MySqueezeExciteUnit 'own' (judging by its name; its")
    assert "register_existing_attention" in site.reason
    with pytest.raises(
        PlacementError, match=r"own \(MySqueezeExciteUnit: its forward cannot be tr"
    ):
        apply_eca(model, replace=True)


def test_the_best_known_names_can_be_replaced_even_so():
    model = Network(SELayer(CHANNELS))
    assert names(plan_eca(model, replace=True).chosen) == ("own",)
    assert "judging by its name" in plan_eca(model, min_channels=1).passed_over[0].reason


def test_an_example_shows_the_sites_of_one_position():
    model = Network(Secret(CHANNELS))
    example = torch.randn(2, 3, 8, 8)
    plan = plan_eca(model, min_channels=1, example=example)
    noted = [s.name for s in plan.sites if any("one position" in note for note in s.notes)]
    assert noted == ["own.fc"]
    assert "own.fc: sees one position (of an attention" in str(plan)
    model = Network(SE_Block(CHANNELS))
    model.own.fc = nn.Conv2d(1, 1, 1)
    assert not any(
        "one position" in note
        for site in plan_eca(model, min_channels=1, example=example).sites
        for note in site.notes
    )


@pytest.fixture
def unregistered():
    from composer_attn.surgery.existing_attention import known

    before = dict(known._registered)
    yield
    known._registered.clear()
    known._registered.update(before)


@pytest.mark.usefixtures("unregistered")
def test_a_registered_class_is_what_was_said():
    class Other(Secret):
        pass

    model = Network(Other(CHANNELS))
    assert names(plan_eca(model, min_channels=1).chosen) == ("own.fc", "conv", "last")
    register_existing_attention(Secret)
    assert names(plan_eca(model, min_channels=1).chosen) == ("conv", "last")
    chosen = plan_eca(model, replace=True).chosen
    assert [(site.name, site.channels) for site in chosen] == [("own", CHANNELS)]
    register_existing_attention(Other, "fixed")
    assert names(plan_eca(model, min_channels=1).chosen) == ("conv", "last")
    with pytest.raises(PlacementError, match=r"It has own \(Other\), which cannot be replaced"):
        plan_eca(model, replace=True)
    register_existing_attention(Other, "none")
    assert names(plan_eca(model, min_channels=1).chosen) == ("own.fc", "conv", "last")
    register_existing_attention(SE_Block, "none")
    with pytest.warns(UserWarning, match="no attention of its own"):
        assert remove_attention(Network(SE_Block(CHANNELS))) == {}


@pytest.mark.parametrize("cls", [3, int, nn.Linear(1, 1), "SELayer", None])
def test_only_classes_of_modules_can_be_registered(cls):
    with pytest.raises(ArgumentError, match="takes a class of torch"):
        register_existing_attention(cls)


def test_only_three_kinds_can_be_registered():
    with pytest.raises(ArgumentError, match="rescaling, fixed, none; got 'se'"):
        register_existing_attention(SE_Block, "se")


class Trainer:
    """Holds much, and itself; and cannot be copied."""

    def __init__(self, module):
        self.module, self.lock, self.me = module, threading.Lock(), self


def test_modules_that_hold_what_cannot_be_copied_go_by_their_names():
    own = SE_Block(CHANNELS)
    own.trainer = Trainer(own)
    own.loop = [own]
    own.loop.append(own.loop)
    model = Network(own)
    with pytest.raises(
        PlacementError, match=r"own \(SE_Block: its forward cannot be traced: cannot"
    ):
        plan_eca(model, replace=True)
    del own.trainer
    plan = plan_eca(model, replace=True)
    assert names(plan.chosen) == ("own",)


def test_lazy_modules_and_replaced_forwards_cause_no_errors():
    model = Network(SE_Block(CHANNELS))
    model.extra = nn.ModuleList([nn.Sequential(nn.LazyConv2d(4, 1)), SE_Block(CHANNELS)])
    model.extra[1].more = nn.LazyConv2d(4, 1)
    model.extra[1].forward = lambda x: x
    assert names(plan_eca(model, exclude="extra.*", min_channels=1).chosen) == ("conv", "last")
