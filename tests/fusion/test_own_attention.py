"""The attention that a network came with is computed with the norm and activation before it."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from composer_attn import apply_attention, apply_eca, fuse_attention, unfuse_attention
from composer_attn.attention import SqueezeExcitation
from composer_attn.errors import NothingAttendedWarning
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.surgery.attend import attend
from tests.fusion.own_networks import (
    ATTENTIONS,
    CHANNELS,
    FUNCTIONS,
    MODULES,
    OTHERS,
    Other,
    Own,
    assert_same,
    everything,
    own_pair,
    small,
)

SHAPES = [(2, 3, 9, 7), (3, 3, 3, 3), (1, 3, 8, 5)]
each_attention = pytest.mark.parametrize("kind", ATTENTIONS)
with_and_without_norm = pytest.mark.parametrize("normed", [True, False], ids=["norm", "no norm"])


def draw(shape=SHAPES[0]) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def both(plain: nn.Module, fused: nn.Module, x: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert_same(everything(fused, x), everything(plain, x), tolerance)


@each_attention
@with_and_without_norm
@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen"])
def test_every_attention_agrees(kind, backend, shape, mode, normed):
    plain, fused = own_pair(small(kind, normed=normed), backend)
    for model in (plain, fused):
        model.train(mode != "evaluation")
        _ = model.norm.eval().requires_grad_(False) if mode == "frozen" else None
    for layout in (torch.contiguous_format, torch.channels_last):
        x = draw(shape).to(memory_format=layout)
        both(plain.to(memory_format=layout), fused.to(memory_format=layout), x)


@pytest.mark.parametrize("activation", MODULES)
@with_and_without_norm
@pytest.mark.parametrize("training", [True, False])
def test_every_activation_module_agrees(activation, training, normed):
    expected = int(normed or activation != "identity")
    plain, fused = own_pair(small(activation=activation, normed=normed), fused=expected)
    both(plain.train(training), fused.train(training), draw())


@pytest.mark.parametrize("function", FUNCTIONS)
@with_and_without_norm
def test_every_activation_function_agrees_and_is_found(function, normed):
    model = Own(ATTENTIONS["SEModule"](), None, FUNCTIONS[function], normed)
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    first = ("norm", "") if normed else ("", "conv")
    assert (site.norm, site.convolution) == first
    assert (site.name, site.last) == ("attn", True)
    assert site.activation
    both(plain, fused, draw())


@pytest.mark.parametrize(
    ("activation", "normed"),
    [(name, True) for name in ("silu in place", "hardswish", "identity")]
    + [(name, False) for name in ("silu in place", "hardswish", "relu", "gelu")],
)
def test_neither_norm_nor_activation_is_written(activation, normed, monkeypatch):
    _, fused = own_pair(small(activation=activation, normed=normed))
    written = []
    monkeypatch.setattr(Deferred, "_numbers", lambda self: written.append(self))
    fused(draw()).sum().backward()
    assert not written


def test_the_plan_names_norm_activation_and_attention():
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.SiLU(), ATTENTIONS["torchvision"](),
        nn.Conv2d(CHANNELS, CHANNELS, 1), ATTENTIONS["SEModule"](),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingAttendedWarning)
        plan = fuse_attention(model, "reference")
    assert str(plan) == (
        "backend reference: 1 of 2 sites fused with a norm, 1 with an activation, "
        "0 with an addition\n"
        "site  kind               norm  activation  addition  fused\n"
        "3     SqueezeExcitation  1     2           -         yes\n"
        "5     SEModule           -     -           -         no: its input comes from 4 "
        "(Conv2d), not from a batch norm and activation alone"
    )
    assert unfuse_attention(model) == ["3"]


def test_nothing_to_fuse_is_warned_of():
    with pytest.warns(NothingAttendedWarning, match="none of its own that can be fused"):
        fuse_attention(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))


@each_attention
@with_and_without_norm
def test_undoing_is_exact_and_nothing_else_has_changed(kind, normed):
    plain, fused = own_pair(small(kind, normed=normed))
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, fused.state_dict().values(), plain.state_dict().values()))
    assert isinstance(fused.attn, type(plain.attn))
    assert unfuse_attention(fused) == ["attn"]
    for own, other in zip(fused.modules(), plain.modules(), strict=True):
        assert type(own) is type(other)
        assert vars(own).keys() == vars(other).keys()
    assert unfuse_attention(fused) == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@with_and_without_norm
def test_copies_stay_fused(copied, normed):
    plain, fused = own_pair(small("SqueezeExcite", normed=normed))
    other = copied(fused)
    assert is_fused(other.norm if normed else other.conv)
    assert is_fused(other.attn)
    both(plain, other, draw())
    assert unfuse_attention(other) == ["attn"]
    assert type(other.attn) is type(plain.attn)


@with_and_without_norm
@pytest.mark.parametrize("watched", ["conv", "norm", "act", "attn", "attn.fc1", "attn.activation"])
@pytest.mark.parametrize("activation", ["silu", "silu in place"])
@pytest.mark.parametrize("how", ["forward", "before", "backward"])
def test_hooks_see_what_they_would_see(watched, activation, how, normed):
    seen = []
    for model in own_pair(small(activation=activation, normed=normed)):
        module, own = model.get_submodule(watched), []
        model.attn.activation.inplace = False  # beside which torch refuses backward hooks

        def note(module, *given, own=own):
            tensors = torch.utils._pytree.tree_leaves(given)
            own.extend(t.detach().clone() for t in tensors if isinstance(t, torch.Tensor))

        if how == "forward":
            module.register_forward_hook(note)
        elif how == "before":
            module.register_forward_pre_hook(note)
        elif "in place" in activation:
            return  # torch refuses such hooks beside what is done in place
        else:
            module.register_full_backward_hook(note)
        x = torch.linspace(-2, 2, 2 * 3 * 9 * 7, dtype=torch.float64).view(2, 3, 9, 7)
        seen.append((own, everything(model, x)))
    (expected, plain), (found, fused) = seen
    assert len(found) == len(expected) > 0
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
    assert_same(fused, plain)


def test_a_hook_on_every_module_sees_the_layers_of_the_attention():
    seen = []
    for model in own_pair(small()):
        own = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, x, y, own=own: own.append((type(module).__name__[-6:], y.sum().item()))
        )
        try:
            model(draw(SHAPES[1]) * 0 + 1)
        finally:
            handle.remove()
        seen.append(own)
    assert [name for name, _ in seen[1]] == [name for name, _ in seen[0]]
    assert [y for _, y in seen[1]] == pytest.approx([y for _, y in seen[0]], rel=1e-9)


@pytest.mark.parametrize("activation", ["silu", "silu in place", "identity", "relu in place"])
@pytest.mark.parametrize("use", OTHERS)
@with_and_without_norm
def test_every_observer_gets_the_right_numbers(use, activation, normed):
    """The forward differs from the planned one, which is that of Own."""
    expected = int(normed or activation != "identity")
    plain, fused = own_pair(small(activation=activation, normed=normed), fused=expected)
    for model in (plain, fused):
        model.__class__, model.use = Other, OTHERS[use]
    x = draw()
    if activation == "relu in place" and use in ("activated twice", "changed after the activation"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            everything(plain, x)  # torch has kept the output that is changed here
        return
    assert_same(everything(fused, x), everything(plain, x))


@pytest.mark.parametrize("use", ["the norm's output is used, too", "added to a map"])
def test_what_is_used_elsewhere_is_not_planned(use):
    plain, fused = own_pair(Other(lambda s, z: s.act(z)), fused=0)
    model = Other(OTHERS[use])
    model.__class__ = type("Traced", (Other,), {"forward": lambda s, x: OTHERS[use](s, s.norm(x))})
    plan = fuse_attention(model, "reference")
    assert not plan.fused
    assert "its input comes from" in plan.alone[0].reason
    both(plain, fused, draw())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("activation", ["silu", "hardswish in place", "identity"])
@with_and_without_norm
def test_checkpointed_activations_agree(reentrant, activation, normed):
    expected = int(normed or activation != "identity")
    plain, fused = own_pair(small(activation=activation, normed=normed), fused=expected)
    x = draw()

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(fused, x, use_reentrant=reentrant)

    expected, found = everything(plain, x), everything(fused, x, checkpointed)
    counted = {name for name in expected if "running" in name or "batches" in name}
    for name in counted:  # which move twice
        del expected[name], found[name]
    assert_same(found, expected)


@with_and_without_norm
def test_inputs_that_are_refused_are_refused_alike(normed):
    for shape in [(2, 3, 4), (3, 5, 5), (2, 4, 8, 8), (1, 3, 3, 3), (0, 3, 5, 5)]:
        found = []
        for model in own_pair(small(normed=normed)):
            try:
                found.append(model(draw(shape)).shape)
            except (RuntimeError, ValueError) as error:
                found.append((type(error), str(error)))
        assert found[0] == found[1]


def test_another_dtype_of_the_attention_is_refused_alike():
    for model in own_pair(small()):
        model.attn.float()
        with pytest.raises(RuntimeError, match="type"):
            model(draw())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@with_and_without_norm
def test_autocast_agrees(dtype, normed):
    plain, fused = own_pair(small(normed=normed))
    x = draw((4, 3, 12, 12)).float()
    with torch.autocast("cpu", dtype):
        found, expected = fused.float()(x), plain.float()(x)
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_inference_mode_and_no_gradients():
    plain, fused = (model.eval() for model in own_pair(small()))
    x = draw()
    expected = plain(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), expected, rtol=1e-12, atol=1e-12)


def test_layers_that_are_exchanged_later_are_computed():
    plain, fused = own_pair(small())
    for model in (plain, fused):
        model.attn.fc1.weight = nn.Parameter(model.attn.fc1.weight.detach() * 2)
        model.attn.activation = nn.Softplus()
    both(plain, fused, draw())


@pytest.mark.parametrize("replace", [apply_eca])
def test_ours_in_its_place_is_fused_too(replace):
    model = small("SqueezeExcite", "hardswish in place")
    replace(model, min_channels=1, replace=True)
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.norm, site.activation, site.function) == ("norm", "act", "hardswish")
    both(plain, fused, draw())
    assert unfuse_attention(fused) == ["attn"]


def test_ours_beside_it_takes_the_norm():
    model = small("EcaModule")
    apply_eca(model, min_channels=CHANNELS)
    plain, fused = own_pair(model, fused=1)
    plan = fuse_attention(fused, "reference")
    reasons = {site.name: site.reason for site in plan.alone}
    assert reasons["attn"] == "norm is fused with conv"
    both(plain, fused, draw())


def test_another_surgery_keeps_the_fusion():
    _, fused = own_pair(small(), norms=True)
    apply_eca(fused, min_channels=1, include=["last"])
    assert is_fused(fused.norm)
    assert is_fused(fused.attn)


@pytest.mark.parametrize("activation", ["silu", "hardswish in place", "identity"])
def test_ours_on_an_activation_is_fused_with_the_norm_before(activation):
    model = small(activation=activation)
    model.attn = nn.Identity()
    attend(model.act, SqueezeExcitation(CHANNELS, 4))
    plain, fused = own_pair(model)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.name, site.norm, site.last) == ("act", "norm", True)
    both(plain, fused, draw())
    assert unfuse_attention(fused) == ["act"]


@each_attention
def test_a_symbolic_trace_computes_the_same(kind):
    plain, fused = own_pair(small(kind))
    both(plain, torch.fx.symbolic_trace(fused), draw())


def test_ours_as_a_module_of_the_network_is_fused_and_observed():
    plain, fused = own_pair(small("ours, SE"))
    seen = {}
    for name, model in (("plain", plain), ("fused", fused)):
        model.attn.observer = partial(seen.__setitem__, name)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    assert_same(everything(fused, x), everything(plain, x))
    assert torch.allclose(seen["fused"], seen["plain"], rtol=1e-12)


def test_our_attention_with_another_squeeze_is_not_fused():
    model = Own(SqueezeExcitation(CHANNELS, 4, squeeze="max"), nn.SiLU())
    (site,) = fuse_attention(model, "reference").alone
    assert (site.name, site.reason) == ("attn", "squeeze='max' is not an average")


def test_what_is_inside_an_added_attention_is_not_the_network_s_own():
    class Wrapper(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm, self.inner = nn.BatchNorm2d(channels), SqueezeExcitation(channels, 4)

        def forward(self, x):
            return self.inner(self.norm(x))

    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    apply_attention(model, Wrapper, min_channels=1)
    assert [site.name for site in fuse_attention(model, "reference").sites] == ["0"]


@with_and_without_norm
@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_changed_after_it_was_activated_has_been_activated_before(normed, gradients):
    def use(model, z):
        u = model.act(z)
        z.mul_(2)
        return model.attn(u) + z

    plain, fused = own_pair(small(activation="relu", normed=normed))
    for model in (plain, fused):
        model.__class__, model.use = Other, use
    x = draw()
    if gradients:
        both(plain, fused, x)
        return
    with torch.no_grad():
        x = draw((2, 3, 300, 300))  # more values than are left to the modules
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
