"""Norm, activation, attention in few calls: that they compute what the modules do."""

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention
from composer_attn.ops.activations import ACTIVATIONS, Activation, find_activation
from composer_attn.ops.excitations import two_layers
from composer_attn.ops.pending_region import excitation_of
from composer_attn.ops.region_sites import begin
from tests.ops.activated_regions import FOREIGN, MODULES, Site, build, differences, results
from tests.ops.regions import ATTENTIONS, SMALL, distance, draw

KINDS = (*FOREIGN, *ATTENTIONS)
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


def compared(
    site: Site, general_stages, shape, last=False, dtype=torch.float64
) -> dict[str, float]:
    """Differences between the calls and the general stages of C++."""
    other = copy.deepcopy(site)
    x, shortcut, dy = (draw(shape, dtype, last) for _ in range(3))
    found = results(site, partial(site.joint, backend="cpp"), x, shortcut, dy)
    right = general_stages(results, other, partial(other.joint, backend="cpp"), x, shortcut, dy)
    assert found.keys() == right.keys()
    return {name: distance(found[name], right[name]) for name in right}


def strided() -> torch.Tensor:
    return draw((3, 6, 10, 14))[..., ::2, ::2]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("attention", ["two", "one", "eca"])
@each_training
def test_it_agrees_with_the_modules(region_calls, activation, attention, training):
    site = build(SMALL, activation, attention, training=training)
    assert max(differences(site, SMALL, "cpp", steps=2).values()) < 1e-12
    assert region_calls.count("gradient") == region_calls.count("attend") == 2


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])
@each_kind
@either_layout
def test_with_every_gate(region_calls, gate, attention, last):
    site = build(SMALL, "hardswish", attention, gate=gate, shortcut=True)
    assert max(differences(site, SMALL, "cpp", last).values()) < 1e-12
    assert "gradient" in region_calls


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@each_training
@either_layout
def test_whatever_the_sizes(region_calls, shape, parts, training, last):
    site = build(shape, "silu", "two", parts, training=training, shortcut="attention" in parts)
    assert max(differences(site, shape, "cpp", last and len(shape) > 3).values()) < 1e-12
    assert "gradient" in region_calls


@pytest.mark.parametrize(
    "of_norm",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "eps": 0.1}],
    ids=["no parameters", "no running statistics", "eps"],
)
@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@each_training
def test_whatever_the_norm(region_calls, of_norm, parts, training):
    site = build(SMALL, parts=parts, training=training, **of_norm)
    assert max(differences(site, SMALL, "cpp").values()) < 1e-12
    assert "gradient" in region_calls


@pytest.mark.parametrize("activation", ["relu", "identity"])
@each_training
@either_layout
def test_additions(region_calls, activation, training, last):
    site = build(SMALL, activation, parts="norm", training=training, shortcut=True)
    assert max(differences(site, SMALL, "cpp", last).values()) < 1e-12
    assert "sum_gradient" in region_calls


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_between_two_layers(region_calls, activation):
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
    assert "gradient" in region_calls


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@either_layout
def test_it_agrees_with_the_general_stages(general_stages, attention, dtype, last):
    site = build((4, 70, 6, 5), attention=attention, dtype=dtype, shortcut=True)
    allowed = 1e-12 if dtype == torch.float64 else 2e-5
    assert max(compared(site, general_stages, (4, 70, 6, 5), last, dtype).values()) < allowed


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])
def test_gates_around_one(general_stages, start, gate):
    site = build(SMALL)
    site.attention = EfficientChannelAttention(6, 3, gate=gate, start=start, dtype=torch.float64)
    assert max(compared(site, general_stages, SMALL).values()) < 1e-12


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_an_addition_and_a_relu_after_the_attention(general_stages, relu, activation):
    site = build(SMALL, activation, "two", shortcut=True)
    other, inputs = copy.deepcopy(site), [draw(SMALL, mean=0) for _ in range(3)]

    def joint(of: Site, x, shortcut):
        pending = begin(x, of.norm, "cpp").activated(find_activation(of.activation))
        attended = pending.attended(*excitation_of(of.attention.described(6)))
        return attended.result(relu, shortcut)

    found = results(site, partial(joint, site), *inputs)
    right = general_stages(results, other, partial(joint, other), *inputs)
    assert max(distance(found[name], right[name]) for name in right) < 1e-12


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


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(("activation", "attention"), list(
    itertools.product(["relu", "silu", "identity"], [None, "two", "one", "eca", "se"])
))  # fmt: skip
@each_training
@pytest.mark.parametrize("of_gradient", [True, False])
def test_infinities_spread_no_further(
    general_stages, value, activation, attention, training, of_gradient
):
    parts = "norm" if attention is None else "norm_attention"
    site = build(SMALL, activation, attention or "se", parts, gate="hard_sigmoid",
                 training=training)  # fmt: skip
    other, x, dy = copy.deepcopy(site), draw(SMALL), draw(SMALL, mean=0)
    (dy if of_gradient else x)[1, 2, 3, 3] = value
    found = results(site, partial(site.joint, backend="cpp"), x, None, dy)
    right = general_stages(results, other, partial(other.joint, backend="cpp"), x, None, dy)
    for name, each in right.items():
        finite = each.isfinite()
        assert found[name][finite].isfinite().all(), name
        torch.testing.assert_close(found[name][finite], each[finite], rtol=1e-10, atol=1e-10)
