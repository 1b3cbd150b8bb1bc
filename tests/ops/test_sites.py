"""A whole site in C++: when it is used, and that it computes what the general stages do."""

import copy
import itertools

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.ops import attend
from composer_attn.ops.backends import cpp_site
from composer_attn.ops.prepared_site import excite
from composer_attn.ops.recompute import recipe_of
from composer_attn.ops.sites import ExcitedSite, NormalizedSite
from composer_attn.ops.stages import Excited, Normalized
from tests.attention.attentions import GATES, STARTS
from tests.ops.regions import (
    ATTENTIONS,
    SMALL,
    build,
    differences,
    distance,
    draw,
    from_copies,
    in_copies,
    results,
)
from tests.ops.test_own_logits import Independent

each_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def stage(x: torch.Tensor, attention: nn.Module, backend: str = "cpp", called: bool = False):
    return type(excite(x, attention, backend, called))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@each_attention
def test_it_is_used_for_the_attentions_of_this_package(dtype, last, attention):
    of_layers = torch.float32 if dtype == torch.bfloat16 else dtype
    built = ATTENTIONS[attention](6, dtype=of_layers)
    assert stage(draw(SMALL, dtype, last), built) is ExcitedSite


def transposed() -> SqueezeExcitation:
    built = SqueezeExcitation(6, 3, dtype=torch.float64)
    built.fc1.weight.data = built.fc1.weight.data.t().contiguous().t()
    return built


def negative() -> SqueezeExcitation:
    built = SqueezeExcitation(6, 3, dtype=torch.float64)
    built.fc1.weight = nn.Parameter(torch._neg_view(built.fc1.weight.detach()))
    return built


@pytest.mark.parametrize(
    ("x", "attention", "options"),
    [
        (draw(SMALL), Independent(), {}),
        (draw(SMALL), transposed(), {}),
        (draw(SMALL), negative(), {}),
        (draw(SMALL), SqueezeExcitation(6, 3, dtype=torch.float64, device="meta"), {}),
        (draw((3, 6, 14, 14))[..., ::2, ::2], SqueezeExcitation(6, 3, dtype=torch.float64), {}),
        (draw(SMALL, torch.float16), SqueezeExcitation(6, 3), {}),
        (draw(SMALL), SqueezeExcitation(6, 3, dtype=torch.float64), {"called": True}),
        (draw(SMALL), SqueezeExcitation(6, 3, dtype=torch.float64), {"backend": "reference"}),
    ],
    ids=[*("own", "transposed", "negative", "elsewhere", "strided", "half", "hooks", "reference")],
)
def test_the_general_stages_are_used_otherwise(x, attention, options):
    assert stage(x, attention, **options) is Excited


@pytest.mark.parametrize("second", [nn.Linear(5, 6), nn.Linear(6, 3, bias=False)])
def test_layers_that_do_not_fit_are_refused_as_by_torch(second):
    attention = SqueezeExcitation(6, 3, dtype=torch.float64)
    attention.fc2 = second.double()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        attend(draw(SMALL), attention, "cpp")


def test_without_a_blas_the_general_stages_are_used(monkeypatch):
    monkeypatch.setattr(cpp_site, "is_available", lambda: False)
    assert stage(draw(SMALL), SqueezeExcitation(6, 3, dtype=torch.float64)) is Excited


def test_a_torch_without_the_symbols_has_no_blas(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert not cpp_site.is_available.__wrapped__()


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.BatchNorm2d(6).double(), NormalizedSite),
        (nn.BatchNorm2d(6).double().eval(), NormalizedSite),
        (nn.BatchNorm2d(6, affine=False, track_running_stats=False), NormalizedSite),
        (nn.BatchNorm2d(6, momentum=None).double(), Normalized),
        (nn.GroupNorm(2, 6).double(), Normalized),
    ],
    ids=["batch", "evaluation", "bare", "cumulative", "group"],
)
def test_norms(norm, kind):
    attention = SqueezeExcitation(6, 3, dtype=torch.float64)
    assert type(excite(draw(SMALL), attention, "cpp").normalized(norm)) is kind


def wide(attention: str) -> nn.Module:
    """Layers of other sizes than the feature map's."""
    if attention == "eca":
        return EfficientChannelAttention(37, 5, dtype=torch.float64)
    return SqueezeExcitation(37, 70, bias=attention == "se_bias", dtype=torch.float64)


@each_attention
@pytest.mark.parametrize(("gate", "start"), list(itertools.product(GATES, STARTS)))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("end", [{}, {"relu": True}, {"shortcut": True, "relu": True}])
def test_it_agrees_with_the_modules(attention, gate, start, training, end):
    case = build(SMALL, attention, gate=gate, start=start, training=training, **end)
    found = differences(case, SMALL, "cpp", last=training, steps=2)
    assert max(found.values()) < 1e-12


@each_attention
def test_it_agrees_with_the_general_stages_whatever_the_sizes(attention, monkeypatch):
    case = build((5, 37, 3, 4), relu=True)
    case.attention = wide(attention)
    other = copy.deepcopy(case)
    x, dy = draw((5, 37, 3, 4)), torch.randn(5, 37, 3, 4, dtype=torch.float64)
    found = results(case, lambda x, added: case.joint(x, added, "cpp"), x, None, dy)
    monkeypatch.setattr(cpp_site, "is_available", lambda: False)
    general = results(other, lambda x, added: other.joint(x, added, "cpp"), x, None, dy)
    assert max(distance(found[name], general[name]) for name in general) < 1e-12


@each_attention
def test_attention_alone(attention):
    case = build(SMALL, attention)
    x = draw(SMALL).requires_grad_()
    parameters = [x, *case.attention.parameters()]
    dy = torch.randn(SMALL, dtype=torch.float64)
    right = torch.autograd.grad(case.attention(x), parameters, dy)
    found = torch.autograd.grad(attend(x, case.attention, "cpp"), parameters, dy)
    assert max(map(distance, found, right)) < 1e-12


def test_the_gradient_is_one_call(monkeypatch):
    calls, run = [], cpp_site.gradient
    monkeypatch.setattr(cpp_site, "gradient", lambda *given: calls.append(given) or run(*given))
    case = build(SMALL, relu=True)
    x = draw(SMALL).requires_grad_()
    case.joint(x, None, "cpp").sum().backward()
    assert len(calls) == 1
    assert x.grad is not None


def test_the_gradient_can_be_taken_twice():
    case, x = build(SMALL, relu=True), draw(SMALL).requires_grad_()
    y, dy = case.joint(x, None, "cpp"), torch.randn(SMALL, dtype=torch.float64)
    first, second = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shortcut", [False, True])
def test_what_is_kept_may_return_in_another_layout(shortcut):
    assert from_copies(build(SMALL, relu=True, shortcut=shortcut), "cpp") < 1e-12


def test_so_may_what_an_output_is_computed_again_from():
    case, x = build(SMALL, relu=True), draw(SMALL, last=True)
    with in_copies():
        y = case.joint(x, None, "cpp")
    assert torch.equal(recipe_of(y)(), y)


def test_two_norms_of_one_attended_map_keep_their_own_numbers():
    case, x, dy = build(SMALL), draw(SMALL).requires_grad_(), draw(SMALL)
    attended = case.attention(x)
    fixed = copy.deepcopy(case.norm).eval()
    norms = (case.norm, fixed)
    right = [torch.autograd.grad(n(attended), x, dy, retain_graph=True)[0] for n in norms]
    excited = excite(x, case.attention, "cpp")
    outputs = [excited.normalized(norm).result() for norm in norms]
    found = [torch.autograd.grad(y, x, dy)[0] for y in outputs]
    assert max(map(distance, found, right)) < 1e-12


def test_only_what_is_needed_is_differentiated():
    case = build(SMALL, relu=True)
    y = case.joint(draw(SMALL), None, "cpp")
    y.sum().backward()
    assert all(each.grad is not None for each in case.parameters())


def test_an_observer_sees_the_scales():
    attention, seen = SqueezeExcitation(6, 3, dtype=torch.float64), []
    x = draw(SMALL)
    right = attention.excitation(x)
    attention.observer = seen.append
    excite(x, attention, "cpp")
    assert len(seen) == 1
    assert distance(seen[0], right) < 1e-14


def test_changing_the_input_before_the_gradient_is_refused():
    case, x = build(SMALL, relu=True), draw(SMALL)
    y = case.joint(x, None, "cpp")
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
