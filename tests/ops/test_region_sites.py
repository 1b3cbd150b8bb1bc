"""Norm, activation, attention in few calls: when they are used, and that the results are those."""

import copy
import itertools
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import region_sites
from composer_attn.ops.activations import ACTIVATIONS, RELU, Activation, find_activation
from composer_attn.ops.backends import cpp_region
from composer_attn.ops.excitations import two_layers
from composer_attn.ops.pending_region import PendingRegion, excitation_of
from composer_attn.ops.region_sites import PendingSite, begin
from tests.ops.activated_regions import FOREIGN, MODULES, Site, build, differences, results
from tests.ops.regions import ATTENTIONS, SMALL, distance, draw
from tests.ops.test_activated_gradients import kept

KINDS = (*FOREIGN, *ATTENTIONS)
CALLS = ("normalize", "attend", "write", "write_sum", "gradient", "sum_gradient")
SHAPES = {
    "map": (3, 37, 5, 7),
    "one position": (5, 20, 1, 1),
    "one sample": (1, 17, 9, 9),
    "sequence": (2, 33, 19),
    "volume": (2, 5, 3, 4, 3),
    "two positions": (40, 3, 2, 1),
}
each_kind = pytest.mark.parametrize("attention", KINDS)
each_training = pytest.mark.parametrize("training", [True, False])
either_layout = pytest.mark.parametrize("last", [False, True])


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the whole-stage calls, in their order."""
    made = []

    def counted(name, run, *given):
        made.append(name)
        return run(*given)

    for name in CALLS:
        run = partial(counted, name, getattr(cpp_region, name))
        monkeypatch.setattr(cpp_region, name, run)
    return made


@pytest.fixture
def general(monkeypatch):
    """Run a function with the general stages alone."""

    def run(function, *given):
        with monkeypatch.context() as without:
            without.setattr(region_sites, "find_region", lambda name, x: None)
            return function(*given)

    return run


def compared(site: Site, general, shape, last=False, dtype=torch.float64) -> dict[str, float]:
    """Differences between the calls and the general stages of C++."""
    other = copy.deepcopy(site)
    x, shortcut, dy = (draw(shape, dtype, last) for _ in range(3))
    found = results(site, partial(site.joint, backend="cpp"), x, shortcut, dy)
    right = general(results, other, partial(other.joint, backend="cpp"), x, shortcut, dy)
    assert found.keys() == right.keys()
    return {name: distance(found[name], right[name]) for name in right}


@each_kind
@each_training
def test_a_step_is_three_calls_and_one_for_the_gradient(calls, attention, training):
    site, x = build(SMALL, attention=attention, training=training), draw(SMALL).requires_grad_()
    site.joint(x, None, "cpp").sum().backward()
    assert calls == ["normalize", "attend", "write", "gradient"]


@each_training
def test_so_is_one_without_an_attention(calls, training):
    site, x = build(SMALL, parts="norm", training=training), draw(SMALL).requires_grad_()
    site.joint(x, None, "cpp").sum().backward()
    assert calls == ["normalize", "write", "gradient"]


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_so_is_one_with_an_addition(calls, activation):
    site, x = build(SMALL, activation, parts="norm"), draw(SMALL).requires_grad_()
    site.joint(x, draw(SMALL), "cpp").sum().backward()
    assert calls == ["normalize", "write_sum", "sum_gradient"]


def strided() -> torch.Tensor:
    return draw((3, 6, 10, 14))[..., ::2, ::2]


@pytest.mark.parametrize(
    ("x", "norm"),
    [
        (draw(SMALL), nn.GroupNorm(2, 6).double()),
        (draw(SMALL), nn.BatchNorm2d(6, momentum=None).double()),
        (draw(SMALL, torch.bfloat16), nn.BatchNorm2d(6).bfloat16()),
        (draw(SMALL, torch.float16), nn.BatchNorm2d(6)),
        (strided(), nn.BatchNorm2d(6).double()),
        (torch._neg_view(draw(SMALL)), nn.BatchNorm2d(6).double()),
    ],
    ids=["group", "cumulative", "16 bits", "half", "strided", "negative"],
)
def test_other_norms_and_maps_take_the_general_stages(calls, x, norm):
    assert type(begin(x, norm, "cpp")) is PendingRegion
    found = begin(x, norm.train(), "cpp").activated(Activation("silu")).values()
    copied = copy.deepcopy(norm)
    right = nn.functional.silu(copied.float()(x.float()) if x.dtype == torch.half else copied(x))
    assert distance(found, right.to(x.dtype)) < (1e-12 if x.dtype == torch.double else 0.02)


def test_so_do_other_backends():
    assert type(begin(draw(SMALL), nn.BatchNorm2d(6).double(), "reference")) is PendingRegion


def test_without_a_blas_so_does_everything(monkeypatch):
    monkeypatch.setattr(cpp_region, "is_available", lambda: False)
    assert type(begin(draw(SMALL), nn.BatchNorm2d(6).double(), "cpp")) is PendingRegion


def transposed() -> nn.Module:
    built = SqueezeExcitation(6, 3, dtype=torch.float64)
    built.fc1.weight.data = built.fc1.weight.data.t().contiguous().t()
    return built


class Doubled(SqueezeExcitation):
    """Layers of its own."""

    def logits(self, means):
        return 2 * super().logits(means)


class Halved(SqueezeExcitation):
    """A gate of its own."""

    def apply_gate(self, logits):
        return torch.sigmoid(logits) / 2


@pytest.mark.parametrize(
    "make",
    [transposed, lambda: Doubled(6, 3).double(), lambda: Halved(6, 3).double()],
    ids=["transposed", "own layers", "own gate"],
)
def test_other_attentions_take_the_general_stages_after_the_norm(calls, make):
    site = build(SMALL)
    site.attention = make()
    assert max(differences(site, SMALL, "cpp").values()) < 1e-12
    assert "attend" not in calls
    assert calls[0] == "normalize"


def test_layers_in_16_bits_do_too(calls):
    site = build(SMALL, dtype=torch.float32)
    site.attention.bfloat16()
    site.joint(draw(SMALL, torch.float32), None, "cpp").sum().backward()
    assert calls == ["normalize"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("attention", ["two", "one", "eca"])
@each_training
def test_it_agrees_with_the_modules(calls, activation, attention, training):
    site = build(SMALL, activation, attention, training=training)
    assert max(differences(site, SMALL, "cpp", steps=2).values()) < 1e-12
    assert calls.count("gradient") == calls.count("attend") == 2


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])
@each_kind
@either_layout
def test_with_every_gate(calls, gate, attention, last):
    site = build(SMALL, "hardswish", attention, gate=gate, shortcut=True)
    assert max(differences(site, SMALL, "cpp", last).values()) < 1e-12
    assert "gradient" in calls


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@each_training
@either_layout
def test_whatever_the_sizes(calls, shape, parts, training, last):
    site = build(shape, "silu", "two", parts, training=training, shortcut="attention" in parts)
    assert max(differences(site, shape, "cpp", last and len(shape) > 3).values()) < 1e-12
    assert "gradient" in calls


@pytest.mark.parametrize(
    "of_norm",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "eps": 0.1}],
    ids=["no parameters", "no running statistics", "eps"],
)
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@each_training
def test_whatever_the_norm(calls, of_norm, parts, training):
    site = build(SMALL, parts=parts, training=training, **of_norm)
    assert max(differences(site, SMALL, "cpp").values()) < 1e-12
    assert "gradient" in calls


@pytest.mark.parametrize("activation", ["relu", "identity"])
@each_training
@either_layout
def test_additions(calls, activation, training, last):
    site = build(SMALL, activation, parts="norm", training=training, shortcut=True)
    assert max(differences(site, SMALL, "cpp", last).values()) < 1e-12
    assert "sum_gradient" in calls


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_between_two_layers(calls, activation):
    first, second = nn.Linear(6, 5).double(), nn.Linear(5, 6).double()
    attention = two_layers(first, second, MODULES[activation]())

    def plain(x):
        inner = MODULES[activation]()(first(nn.functional.silu(norm(x)).mean((2, 3))))
        return nn.functional.silu(norm(x)) * torch.sigmoid(second(inner))[..., None, None]

    norm, x = nn.BatchNorm2d(6).double(), (3 * draw(SMALL)).requires_grad_()
    wanted = [x, *norm.parameters(), *first.parameters(), *second.parameters()]
    pending = begin(x, norm, "cpp").activated(Activation("silu"))
    y = pending.attended(*excitation_of(attention)).result()
    found = torch.autograd.grad(y.square().sum(), wanted)
    right = torch.autograd.grad(plain(x).square().sum(), wanted)
    assert max(map(distance, found, right)) < 1e-12
    assert "gradient" in calls


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@either_layout
def test_it_agrees_with_the_general_stages(general, attention, dtype, last):
    site = build((4, 70, 6, 5), attention=attention, dtype=dtype, shortcut=True)
    allowed = 1e-12 if dtype == torch.float64 else 2e-5
    assert max(compared(site, general, (4, 70, 6, 5), last, dtype).values()) < allowed


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])
def test_gates_around_one(general, start, gate):
    site = build(SMALL)
    site.attention = EfficientChannelAttention(6, 3, gate=gate, start=start, dtype=torch.float64)
    assert max(compared(site, general, SMALL).values()) < 1e-12


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_an_addition_and_a_relu_after_the_attention(general, relu, activation):
    site = build(SMALL, activation, "two", shortcut=True)
    other, inputs = copy.deepcopy(site), [draw(SMALL, mean=0) for _ in range(3)]

    def joint(of: Site, x, shortcut):
        pending = begin(x, of.norm, "cpp").activated(find_activation(of.activation))
        attended = pending.attended(*excitation_of(of.attention.described(6)))
        return attended.result(relu, shortcut)

    found = results(site, partial(joint, site), *inputs)
    right = general(results, other, partial(joint, other), *inputs)
    assert max(distance(found[name], right[name]) for name in right) < 1e-12


@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@pytest.mark.parametrize("attention", ["two", "se", "eca", "one"])
def test_no_more_is_kept_for_backward(general, parts, attention):
    site, x = build(SMALL, attention=attention, parts=parts), draw(SMALL).requires_grad_()

    def run(x):
        return site.joint(x, None, "cpp")

    assert kept(run, x) == general(kept, run, x)


@pytest.mark.parametrize("relu", [True, False])
def test_nor_of_an_addition(general, relu):
    norm, x = nn.BatchNorm2d(6).double(), draw(SMALL).requires_grad_()

    def run(x):
        return begin(x, norm, "cpp").result(relu, draw(SMALL))

    assert kept(run, x) < general(kept, run, x)


def test_the_numbers_of_the_forward_are_freed():
    x, norm = draw(SMALL).requires_grad_(), nn.BatchNorm2d(6).double()
    pending = begin(x, norm, "cpp").activated(RELU)
    y = pending.result()
    numbers = weakref.ref(pending.of.numbers.work)
    del pending
    assert numbers() is None
    y.sum().backward()


def test_frozen_and_unused_parts_get_no_gradient(calls):
    site, x = build(SMALL, attention="two"), draw(SMALL)
    site.norm.weight.requires_grad_(False)
    site.joint(x, None, "cpp").sum().backward()
    assert calls[-1] == "gradient"
    assert site.norm.weight.grad is None
    assert all(p.grad is not None for p in site.parameters() if p is not site.norm.weight)


def test_a_map_added_to_itself():
    for parts, activation in (("norm_attention", "silu"), ("norm", "relu")):
        site, x = build(SMALL, activation, parts=parts), draw(SMALL).requires_grad_()
        found, right = (
            torch.autograd.grad(run(x, x).square().sum(), x)[0]
            for run in (partial(site.joint, backend="cpp"), site.plain)
        )
        assert distance(found, right) < 1e-12


@either_layout
def test_gradients_in_another_layout(last):
    site, x = build(SMALL, attention="two", shortcut=True), draw(SMALL, last=last)
    for dy in (draw(SMALL, last=not last), strided(), torch._neg_view(draw(SMALL))):
        other, added = copy.deepcopy(site), draw(SMALL, last=not last)
        found = results(site, partial(site.joint, backend="cpp"), x, added, dy)
        right = results(other, other.plain, x, added, dy)
        assert max(distance(found[name], right[name]) for name in right) < 1e-12


def test_an_observer_sees_the_scales():
    attention, seen, x = SqueezeExcitation(6, 3, dtype=torch.float64), [], draw(SMALL)
    norm = nn.BatchNorm2d(6).double().eval()
    right = attention.excitation(nn.functional.silu(norm(x)))
    attention.observer = seen.append
    found = begin(x, norm, "cpp").activated(Activation("silu")).attended(*excitation_of(attention))
    assert type(found) is PendingSite
    assert len(seen) == 1
    assert distance(seen[0], right) < 1e-14
    assert torch.equal(found.s, seen[0])


def test_changing_a_weight_before_the_gradient_is_refused():
    site, x = build(SMALL, attention="two"), draw(SMALL)
    y = site.joint(x, None, "cpp")
    with torch.no_grad():
        site.attention.fc1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(("activation", "attention"), list(
    itertools.product(["relu", "silu", "identity"], [None, "two", "one", "eca", "se"])
))  # fmt: skip
@each_training
@pytest.mark.parametrize("of_gradient", [True, False])
def test_infinities_spread_no_further(general, value, activation, attention, training, of_gradient):
    parts = "norm" if attention is None else "norm_attention"
    site = build(SMALL, activation, attention or "se", parts, gate="hard_sigmoid",
                 training=training)  # fmt: skip
    other, x, dy = copy.deepcopy(site), draw(SMALL), draw(SMALL, mean=0)
    (dy if of_gradient else x)[1, 2, 3, 3] = value
    found = results(site, partial(site.joint, backend="cpp"), x, None, dy)
    right = general(results, other, partial(other.joint, backend="cpp"), x, None, dy)
    for name, each in right.items():
        finite = each.isfinite()
        assert found[name][finite].isfinite().all(), name
        torch.testing.assert_close(found[name][finite], each[finite], rtol=1e-10, atol=1e-10)
