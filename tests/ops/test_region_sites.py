"""Norm, activation, attention in few calls: when they are used, and their place in a graph."""

import copy
import weakref

import pytest
import torch
from torch import nn

from composer_attn.attention import SqueezeExcitation
from composer_attn.ops import normalize_activate_attend
from composer_attn.ops.activations import RELU, Activation
from composer_attn.ops.backends import cpp_region
from composer_attn.ops.pending_region import PendingRegion, excitation_of
from composer_attn.ops.region_sites import PendingSite, begin
from tests.ops.activated_regions import FOREIGN, Foreign, build, differences
from tests.ops.regions import ATTENTIONS, SMALL, distance, draw, from_copies
from tests.ops.regions import build as of_attention_first
from tests.ops.test_activated_gradients import kept

KINDS = (*FOREIGN, *ATTENTIONS)
each_kind = pytest.mark.parametrize("attention", KINDS)
each_training = pytest.mark.parametrize("training", [True, False])


@each_kind
@each_training
def test_a_step_is_three_calls_and_one_for_the_gradient(region_calls, attention, training):
    site, x = build(SMALL, attention=attention, training=training), draw(SMALL).requires_grad_()
    site.joint(x, None, "cpp").sum().backward()
    assert region_calls == ["normalize", "attend", "write", "gradient"]


@each_training
def test_so_is_one_without_an_attention(region_calls, training):
    site, x = build(SMALL, parts="norm", training=training), draw(SMALL).requires_grad_()
    site.joint(x, None, "cpp").sum().backward()
    assert region_calls == ["normalize", "write", "gradient"]


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_so_is_one_with_an_addition(region_calls, activation):
    site, x = build(SMALL, activation, parts="norm"), draw(SMALL).requires_grad_()
    site.joint(x, draw(SMALL), "cpp").sum().backward()
    assert region_calls == ["normalize", "write_sum", "sum_gradient"]


def strided() -> torch.Tensor:
    return draw((3, 6, 10, 14))[..., ::2, ::2]


def negative() -> nn.Module:
    norm = nn.BatchNorm2d(6).double()
    norm.weight = nn.Parameter(torch._neg_view(norm.weight.detach()))
    return norm


@pytest.mark.parametrize(
    ("x", "norm"),
    [
        (draw(SMALL), nn.GroupNorm(2, 6).double()),
        (draw(SMALL), nn.BatchNorm2d(6, momentum=None).double()),
        (draw(SMALL, torch.bfloat16), nn.BatchNorm2d(6).bfloat16()),
        (draw(SMALL, torch.float16), nn.BatchNorm2d(6)),
        (strided(), nn.BatchNorm2d(6).double()),
        (torch._neg_view(draw(SMALL)), nn.BatchNorm2d(6).double()),
        (draw(SMALL), negative()),
    ],
    ids=["group", "cumulative", "16 bits", "half", "strided", "negative", "negative weight"],
)
def test_other_norms_and_maps_take_the_general_stages(region_calls, x, norm):
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
def test_other_attentions_take_the_general_stages_after_the_norm(region_calls, make):
    site = build(SMALL)
    site.attention = make()
    assert max(differences(site, SMALL, "cpp").values()) < 1e-12
    assert "attend" not in region_calls
    assert region_calls[0] == "normalize"


def test_so_do_layers_elsewhere():
    layers = Foreign(6, "two", dtype=torch.float64).to("meta").described(6)
    with pytest.raises(RuntimeError, match="device"):
        normalize_activate_attend(draw(SMALL), nn.BatchNorm2d(6).double(), "silu", layers, "cpp")


def test_layers_that_do_not_fit_are_refused_as_by_torch():
    attention = SqueezeExcitation(6, 3, dtype=torch.float64)
    attention.fc2 = nn.Linear(6, 3, bias=False).double()
    site = build(SMALL)
    site.attention = attention
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        site.joint(draw(SMALL), None, "cpp")


@pytest.mark.parametrize("parts", ["norm_attention", "norm", "attention"])
def test_a_shortcut_elsewhere_is_refused_as_by_torch(parts):
    shortcut = draw(SMALL).to("meta")
    with pytest.raises(RuntimeError, match="device"):
        build(SMALL, "relu", parts=parts).joint(draw(SMALL), shortcut, "cpp")
    with pytest.raises(RuntimeError, match="device"):
        of_attention_first(SMALL).joint(draw(SMALL), shortcut, "cpp")


def test_layers_in_16_bits_do_too(region_calls):
    site = build(SMALL, dtype=torch.float32)
    site.attention.bfloat16()
    site.joint(draw(SMALL, torch.float32), None, "cpp").sum().backward()
    assert region_calls == ["normalize"]


@pytest.mark.parametrize("parts", ["norm_attention", "norm"])
@pytest.mark.parametrize("attention", ["two", "se", "eca", "one"])
def test_no_more_is_kept_for_backward(general_stages, parts, attention):
    site, x = build(SMALL, attention=attention, parts=parts), draw(SMALL).requires_grad_()

    def run(x):
        return site.joint(x, None, "cpp")

    assert kept(run, x) == general_stages(kept, run, x)


@pytest.mark.parametrize("relu", [True, False])
def test_nor_of_an_addition(general_stages, relu):
    norm, x = nn.BatchNorm2d(6).double(), draw(SMALL).requires_grad_()

    def run(x):
        return begin(x, norm, "cpp").result(relu, draw(SMALL))

    assert kept(run, x) < general_stages(kept, run, x)


def test_the_numbers_of_the_forward_are_freed():
    x, norm = draw(SMALL).requires_grad_(), nn.BatchNorm2d(6).double()
    pending = begin(x, norm, "cpp").activated(RELU)
    y = pending.result()
    numbers = weakref.ref(pending.of.numbers.work)
    del pending
    assert numbers() is None
    y.sum().backward()


@pytest.mark.parametrize(
    "site",
    [build(SMALL), build(SMALL, parts="norm"), build(SMALL, "relu", parts="norm", shortcut=True)],
    ids=["attention", "activation", "addition"],
)
def test_what_is_kept_may_return_in_another_layout(site):
    assert from_copies(site, "cpp") < 1e-12


def test_frozen_and_unused_parts_get_no_gradient(region_calls):
    site, x = build(SMALL, attention="two"), draw(SMALL)
    site.norm.weight.requires_grad_(False)
    site.joint(x, None, "cpp").sum().backward()
    assert region_calls[-1] == "gradient"
    assert site.norm.weight.grad is None
    assert all(p.grad is not None for p in site.parameters() if p is not site.norm.weight)


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
