"""Convolutions recompute fused inputs: bit-identical gradients, with less memory kept."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.common import saved_bytes
from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention, unfuse_attention
from composer_attn.ops.recompute import hooks_are_active, recipe_of
from tests import snapshots
from tests.fusion.own_networks import MODULES, everything, own_pair, randomized, small


class Branches(nn.Module):
    """The output of a fused activation goes to two convolutions and an addition."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        return self.one(y) * self.two(y) + y


def sequence(activation: nn.Module, last: nn.Module | None = None, norm=nn.BatchNorm2d):
    last = last or nn.Conv2d(16, 4, 3)
    channels, norm = 16, norm(16)
    return nn.Sequential(nn.Conv2d(3, channels, 3), norm, activation, last)


def twins(model: nn.Module, **fusion) -> tuple[nn.Module, nn.Module]:
    """Return a network that is fused, and one that also computes inputs again."""
    torch.manual_seed(0)
    fused = randomized(model)
    again = copy.deepcopy(fused)
    fuse_attention(fused, **fusion)
    assert fuse_attention(again, recompute=True, **fusion).recomputing
    return fused, again


def kept(model: nn.Module, x: torch.Tensor) -> int:
    return saved_bytes(model, lambda: model(x).sum())


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


NETWORKS = {
    "own attention": lambda: small(),
    "EcaModule": lambda: small("EcaModule", "relu"),
    "norm, SiLU": lambda: sequence(nn.SiLU()),
    "norm, ReLU in place": lambda: sequence(nn.ReLU(inplace=True)),
    "branches": Branches,
    "group norm": lambda: sequence(nn.SiLU(), norm=lambda c: nn.GroupNorm(4, c)),
    "instance norm": lambda: sequence(nn.SiLU(), norm=lambda c: nn.InstanceNorm2d(c, affine=True)),
    "frozen norm": lambda: sequence(nn.ReLU(), norm=FrozenBatchNorm2d),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "NCHW"])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_gradients_are_the_same_and_less_is_kept(network, training, last, backend):
    fused, again = twins(NETWORKS[network]().train(training), backend=backend, norms=True)
    x = torch.randn(2, 3, 16, 15)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert_equal(everything(again, x), everything(fused, x))
    assert kept(again, x) < kept(fused, x)


@pytest.mark.parametrize("activation", [name for name in MODULES if name != "identity"])
def test_every_activation(activation):
    fused, again = twins(sequence(MODULES[activation]()), norms=True)
    x = torch.randn(2, 3, 9, 8)
    assert_equal(everything(again, x), everything(fused, x))
    assert kept(again, x) < kept(fused, x)


@pytest.mark.parametrize("apply", [apply_squeeze_excite, apply_eca])
@pytest.mark.parametrize("placement", ["conv", "norm"])
def test_added_attention(apply, placement):
    model = nn.Sequential(
        *sequence(nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3)), nn.BatchNorm2d(16)
    )
    apply(model, min_channels=1, placement=placement)
    fused, again = twins(model)
    x = torch.randn(2, 3, 16, 15)
    assert_equal(everything(again, x), everything(fused, x))
    # What the second convolution read: 16 channels of 14 x 13.
    assert kept(fused, x) - kept(again, x) == 2 * 16 * 14 * 13 * 4


def test_exactly_the_map_between_is_not_kept():
    fused, again = twins(small())
    x = torch.randn(2, 3, 12, 12)
    assert kept(fused, x) - kept(again, x) == 2 * 16 * 10 * 10 * 4


def test_it_agrees_with_the_unfused_network():
    plain, again = own_pair(small(), recompute=True)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = everything(plain, x)
    for name, value in everything(again, x).items():
        assert torch.allclose(value, expected[name], rtol=1e-11, atol=1e-12), name


def test_sixteen_bits():
    fused, again = twins(small().to(torch.bfloat16))
    x = torch.randn(2, 3, 12, 12, dtype=torch.bfloat16)
    assert_equal(everything(again, x), everything(fused, x))
    assert kept(again, x) < kept(fused, x)


def test_autocast():
    fused, again = twins(small())
    x = torch.randn(2, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(everything(again, x), everything(fused, x))


def test_gradients_of_the_parameters_alone():
    fused, again = twins(small())
    x, found = torch.randn(2, 3, 12, 12), []
    for model in (fused, again):
        model.conv.requires_grad_(False)
        model(x).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert_equal(found[1], found[0])
    assert "last.weight" in found[0]


def test_the_gradient_can_be_computed_twice():
    _, again = twins(small())
    y = again(torch.randn(2, 3, 12, 12))
    y.square().sum().backward(retain_graph=True)
    once = again.last.weight.grad.clone()
    y.square().sum().backward()
    assert torch.equal(again.last.weight.grad, once + once)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    fused, again = twins(small())
    x = torch.randn(2, 3, 12, 12)

    def call(x):
        return checkpoint(again, x, use_reentrant=reentrant)

    found = everything(again, x, call)
    expected = everything(fused, x, lambda x: checkpoint(fused, x, use_reentrant=reentrant))
    assert_equal(found, expected)


def test_hooks_on_saved_tensors_get_the_input_itself():
    fused, again = twins(small())
    x = torch.randn(2, 3, 12, 12)
    with torch.autograd.graph.save_on_cpu():
        found, expected = everything(again, x), everything(fused, x)
    assert_equal(found, expected)
    for active in (True, False):
        hooks = torch.autograd.graph.save_on_cpu() if active else nullcontext()
        with hooks:
            assert hooks_are_active() is active
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert torch.equal(again(x), fused(x))


def test_the_allocator_confirms_it():
    fused, again = twins(small())
    x = torch.randn(2, 3, 64, 64)
    less = allocated(fused, x) - allocated(again, x)
    assert 0.99 < less / (2 * 16 * 62 * 62 * 4) < 1.01


def allocated(model: nn.Module, x: torch.Tensor) -> int:
    """Return how much more memory is in use after a forward than before."""
    model(x)
    with torch.profiler.profile(profile_memory=True) as profile:
        y = model(x)
    events = profile.profiler.kineto_results.events()
    assert y.requires_grad
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def of_last(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    model(x).square().sum().backward()
    return model.last.weight.grad.clone()


def changed(model: nn.Module, module: str, x: torch.Tensor, change) -> torch.Tensor:
    """Run forward; change the output of a module in place; run backward."""
    held = []
    hook = getattr(model, module).register_forward_hook(lambda m, a, y: held.append(y))
    y = model(x).square().sum()
    hook.remove()
    with torch.no_grad():
        change(held[0])
    y.backward()
    return model.last.weight.grad


def test_a_change_of_what_is_read_again_is_an_error():
    _, again = twins(small())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed(again, "conv", torch.randn(2, 3, 12, 12), lambda y: y.add_(1))


def test_a_change_of_what_is_not_read_again_does_no_harm():
    fused, again = twins(small())
    x = torch.randn(2, 3, 12, 12)
    expected = of_last(fused, x)
    assert torch.equal(changed(again, "attn", x, lambda y: y.add_(1)), expected)


def test_a_change_of_the_weight_is_an_error_as_without():
    for model in twins(small()):
        y = model(torch.randn(2, 3, 12, 12)).sum()
        with torch.no_grad():
            model.last.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_an_input_that_was_changed_in_place_has_no_recipe():
    fused, _ = twins(small())
    held = []
    fused.attn.register_forward_hook(lambda m, a, y: held.append(y))
    fused(torch.randn(2, 3, 12, 12))
    assert recipe_of(held[0]) is not None
    assert torch.equal(recipe_of(held[0])(), held[0])
    held[0].mul_(2)
    assert recipe_of(held[0]) is None


def test_other_padding_keeps_its_own_copy():
    last = nn.Conv2d(16, 4, 3, padding=1, padding_mode="reflect")
    fused, again = twins(sequence(nn.SiLU(), last), norms=True)
    x = torch.randn(2, 3, 12, 12)
    assert_equal(everything(again, x), everything(fused, x))


def test_without_gradients_nothing_is_different():
    fused, again = twins(small().eval())
    x = torch.randn(2, 3, 12, 12)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(again(x), fused(x))


def test_the_plan_names_the_convolutions_but_not_those_of_attentions():
    model = small()
    plan = fuse_attention(model, recompute=True)
    assert plan.recomputing == ("conv", "last")
    assert str(plan).splitlines()[0].endswith("; 2 convolutions recompute fused inputs")
    assert fuse_attention(model).recomputing == ()


def test_parametrized_convolutions_are_not_extended():
    model = small()
    parametrizations.weight_norm(model.last)
    assert fuse_attention(model, recompute=True).recomputing == ("conv",)


def test_a_class_that_cannot_be_extended_is_unchanged():
    class Final(nn.Conv2d):
        def __init_subclass__(cls, **options):
            raise TypeError("final")

    model = small()
    model.last = Final(16, 4, 1)
    assert fuse_attention(model, recompute=True).recomputing == ("conv",)


def test_it_is_undone_exactly():
    model = small()
    apply_eca(model, min_channels=4, include="last")
    before = snapshots.of_model(model)
    fuse_attention(model, norms=True, recompute=True)
    assert type(model.conv).__name__ == "FusedConv2d"
    unfuse_attention(model)
    assert snapshots.of_model(model) == before


def test_it_stays_through_another_surgery():
    model = small()
    fuse_attention(model, recompute=True)
    apply_eca(model, min_channels=4, include="last")
    _, again = twins(copy.deepcopy(model))
    x = torch.randn(2, 3, 12, 12)
    # Not equal: one keeps some more (N, C) numbers of the last attention.
    assert kept(model, x) == pytest.approx(kept(again, x), rel=0.01)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_do_likewise(copied):
    _, again = twins(small())
    x = torch.randn(2, 3, 12, 12)
    twin = copied(again)
    assert kept(twin, x) == kept(again, x)
    assert_equal(everything(twin, x), everything(again, x))


def compiled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.compile(model, backend="eager")(x)


@pytest.mark.parametrize(
    "look",
    [
        lambda model, x: torch.jit.trace(model, x, check_trace=False)(x),
        lambda model, x: torch.export.export(model, (x,)).module()(x),
        lambda model, x: torch.fx.symbolic_trace(model)(x),
        lambda model, x: torch.func.functional_call(model, dict(model.named_parameters()), (x,)),
        compiled,
    ],
    ids=["jit.trace", "export", "fx", "functional_call", "compile"],
)
def test_it_still_looks_like_a_convolution(look):
    plain = randomized(small().eval())
    again = copy.deepcopy(plain)
    fuse_attention(again, norms=True, recompute=True)
    x = torch.randn(2, 3, 12, 12)
    assert torch.allclose(look(again, x), plain(x), atol=1e-5)
