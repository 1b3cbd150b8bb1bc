"""Any attention on any network: the ones in the docs, and invalid ones."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from composer_attn.attention import EfficientChannelAttention, SqueezeExcitation
from composer_attn.errors import ArgumentError, NothingAttendedWarning
from composer_attn.functional import (
    apply_attention,
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    detach_attention,
    fuse_attention,
    load_weights,
    plan_attention,
    plan_eca,
    plan_squeeze_excite,
    unfuse_attention,
)
from composer_attn.functional.keywords import SITES, TRAINED
from tests import snapshots
from tests.own_attention import with_se
from tests.own_attentions import CHANNEL, batch, build, each_network, each_own, own

__all__ = ["own"]

FUNCTIONS = (apply_squeeze_excite, plan_squeeze_excite, apply_eca, plan_eca)


def attend(name, network, **arguments):
    model, shape, channels = build(network)
    plan = apply_attention(model.eval(), name, min_channels=channels, **arguments)
    return model, batch(shape), plan


@each_own
@each_network
def test_each_chosen_module_passes_its_output_through_its_attention(own, name, network):
    model, shape, channels = build(network)
    plain, x = copy.deepcopy(model.eval()), batch(shape)
    plan = apply_attention(model, name, min_channels=channels)
    assert len(plan.chosen) >= 2
    for site in plan.chosen:
        attention = model.get_submodule(site.name).attention
        plain.get_submodule(site.name).register_forward_hook(
            lambda conv, args, y, attention=attention: attention(y)
        )
    torch.testing.assert_close(model(x), plain(x))
    assert plan.parameters == sum(
        p.numel() for a in attended_modules(model).values() for p in a.parameters()
    )


@each_network
@pytest.mark.parametrize("second", ["simam", "eca"])
def test_a_second_surgery_attends_no_convolution_inside_an_attention(own, network, second):
    class WithConvolutions(nn.Module):
        def __init__(self, channels):
            super().__init__()
            kind = nn.Conv3d if network == "volume" else nn.Conv2d
            self.conv, self.out = kind(channels, channels, 1), kind(channels, channels, 1)

        def forward(self, x):
            return self.out(self.conv(x).relu())

    model, shape, _ = build(network)
    first = plan_attention(model, second, min_channels=1).chosen[0].name
    apply_attention(model.eval(), WithConvolutions, min_channels=1, include=first)
    plan = apply_attention(model, second, min_channels=1)
    inside = [site for site in plan.sites if site.name.startswith(f"{first}.attention")]
    assert [site.reason for site in inside] == [f"inside WithConvolutions '{first}.attention'"] * 2
    assert plan.chosen
    found = [s.reason for s in plan.sites if s.name == first]
    assert found == ["already attended by WithConvolutions"]
    assert model(batch(shape)).isfinite().all()


@each_own
@each_network
def test_undoing_is_exact(own, name, network):
    model, shape, channels = build(network)
    x, optimizer = batch(shape), torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    expected, before = model.eval()(x), snapshots.of_all(model, optimizer)
    apply_attention(model, name, min_channels=channels, optimizers=optimizer)
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in model.parameters()}
    detach_attention(model, optimizers=optimizer)
    assert snapshots.of_all(model, optimizer) == before
    assert torch.equal(model(x), expected)


@each_own
@each_network
def test_copies_and_checkpoints_hold_it(own, name, network, tmp_path):
    model, x, _ = attend(name, network)
    y = model(x)
    assert torch.equal(copy.deepcopy(model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again, _, _ = attend(name, network)
    assert load_weights(again, tmp_path / "weights.pt") == ()
    assert torch.equal(again(x), y)


@each_own
@each_network
def test_exports_compute_the_same(own, name, network):
    model, x, _ = attend(name, network)
    y = model(x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y, rtol=1e-4, atol=1e-4)


@each_own
@each_network
def test_fusion_joins_what_squeezes_to_averages_and_leaves_the_rest(own, name, network):
    model, x, _ = attend(name, network)
    y = model(x)
    plan = fuse_attention(model, backend="reference")
    assert bool(plan.fused) == (name == "effective_se")
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)
    unfuse_attention(model)
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("name", CHANNEL)
@each_network
def test_an_identity_start_leaves_a_network_as_it_is(own, name, network):
    model, shape, channels = build(network)
    x = batch(shape)
    expected = model.eval()(x)
    apply_attention(model, name, min_channels=channels, start="identity")
    assert torch.equal(model(x), expected)


@each_own
@each_network
def test_a_plan_with_an_example_counts_what_it_costs(own, name, network):
    model, shape, channels = build(network)
    before = snapshots.of_model(model)
    plan = plan_attention(model, name, min_channels=channels, example=batch(shape))
    assert snapshots.of_model(model) == before
    assert plan.attended.parameters - plan.plain.parameters == plan.parameters
    assert plan.attended.macs - plan.plain.macs == sum(s.cost.macs for s in plan.chosen)
    assert all(s.cost.activation_bytes > 0 for s in plan.chosen)
    if name == "effective_se":
        images, positions = 2, 1  # one matrix product a sample
        site = plan.chosen[0]
        assert site.cost.macs == images * positions * site.channels**2


def test_what_sizes_an_attention_may_differ_by_pattern_and_is_shown():
    class Wide(nn.Module):
        sized_by = "width"

        def __init__(self, channels, width=4):
            super().__init__()
            self.width = width
            self.layer = nn.Linear(channels, width)

        def forward(self, x):
            return x * self.layer(x.mean((2, 3))).mean()

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    example = torch.zeros(1, 3, 2, 2)
    plan = plan_attention(model, Wide, min_channels=8, width={"1": 6}, example=example)
    assert [(s.cost.sized_by, s.cost.width) for s in plan.sites] == [("width", 4), ("width", 6)]
    assert str(plan).splitlines()[1].split()[:5] == ["site", "kind", "channels", "size", "width"]


def test_an_attention_without_parameters_needs_no_optimizer():
    model = nn.Sequential(nn.Conv2d(3, 8, 1).requires_grad_(False), nn.Conv2d(8, 2, 1))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    plan = apply_attention(model, lambda c: nn.Hardswish(), min_channels=8, optimizers=optimizer)
    assert (len(plan.chosen), plan.parameters) == (1, 0)
    assert len(optimizer.param_groups[0]["params"]) == 2


@pytest.mark.parametrize("built", ["before", "after"])
def test_own_attention_replaced_by_one_without_parameters_is_restored(built):
    model, x = with_se()
    first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    y, before = model.eval()(x), snapshots.of_all(model, first)
    apply_attention(model, lambda c: nn.Hardswish(), replace=True, optimizers=first)
    assert type(model.own.attention) is nn.Hardswish
    assert not torch.allclose(model(x), y)
    again = apply_attention(model, lambda c: nn.Hardswish(), replace=True)
    assert [(s.reason, s.channels) for s in again.sites] == [("already attended", 64)]
    optimizer = first if built == "before" else torch.optim.SGD(model.parameters(), lr=0.1)
    detach_attention(model, optimizers=optimizer)
    assert torch.equal(model(x), y)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in model.parameters()
    }
    if built == "before":
        assert snapshots.of_all(model, first) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_is_built_in_the_dtype_of_its_site(dtype):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).to(dtype)
    apply_attention(model, lambda channels: nn.BatchNorm2d(channels), min_channels=8)
    for attention in attended_modules(model).values():
        assert attention.weight.dtype == attention.running_mean.dtype == dtype
        assert attention.num_batches_tracked.dtype == torch.int64
    assert model(torch.zeros(2, 3, 4, 4, dtype=dtype)).dtype == dtype


# What is refused, before anything changes.


class Takes(nn.Module):
    def __init__(self, channels, size, *, mode="a"):
        super().__init__()
        if mode != "a":
            raise KeyError(mode)
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.layer(x)


shared = nn.Conv2d(8, 8, 1)


class Reuses(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = shared

    def forward(self, x):
        return self.layer(x)


class Elsewhere(nn.Module):
    """Keeps a part on the meta device, whatever is asked for."""

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.layer(x)

    def _apply(self, function, recurse=True):
        self.layer.weight = nn.Parameter(torch.empty_like(self.layer.weight, device="meta"))
        return self


class Late(SqueezeExcitation):
    """Its logits are not 0 where its last layer is."""

    def logits(self, squeezed):
        return super().logits(squeezed) + 1


class Half(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x.half()


REFUSED = {
    "an unknown name": ("ecaa", {}, "unknown attention 'ecaa'; did you mean 'eca'"),
    "no attention": (7, {}, "attention must be a registered name, a class, or a function"),
    "a module": (nn.Identity(), {}, "got a module instance"),
    "another shape": (
        lambda c: nn.Conv2d(c, c // 2, 3), {},
        r"same shape and dtype: given \(2, 8, 8, 8\) .* returns \(2, 4, 6, 6\) .*\(at 1\)",
    ),
    "another rank": (lambda c: nn.Flatten(), {}, r"returns \(2, 512\) torch.float32"),
    "no tensor": (lambda c: nn.AdaptiveMaxPool2d(1, return_indices=True), {}, "returns a tuple"),
    "another dtype": (Half, {}, "it returns .* torch.float16"),
    "another dimension": (
        lambda c: nn.Conv3d(c, c, 1), {}, r"fails on a feature map \(2, 8, 8, 8\)"
    ),
    "an unknown argument": (
        Takes, {"size": 1, "moed": "a"}, "unknown argument of Takes 'moed'; did you mean 'mode'",
    ),
    "an unknown keyword": (
        "eca", {"min_chanels": 3},
        "argument of EfficientChannelAttention 'min_chanels'; did you mean 'min_channels'",
    ),
    "an argument that is missing": (Takes, {}, "Takes needs the argument 'size'"),
    "a value": (
        Takes, {"size": 1, "mode": "b"},
        "Takes cannot be built for 8 channels, size=1, mode='b': KeyError: 'b'",
    ),
    "the device": (
        "squeeze_excite", {"device": "cpu"}, "unknown argument of SqueezeExcitation 'device'"
    ),
    "a function that builds none": (lambda c: 3, {}, "must build a torch.nn.Module; got int"),
    "one for all sites": (
        lambda c, one=nn.Conv2d(8, 8, 1): one, {}, "must be built for each site"  # noqa: B008
    ),
    "a layer of another's": (Reuses, {}, "a new Reuses must be built for each site"),
    "elsewhere": (Elsewhere, {}, "Elsewhere was built on meta, and its site is on cpu"),
    "lazy": (lambda c: nn.LazyConv2d(8, 1), {}, "is lazy: it must know its shapes"),
    "no identity": (Late, {"start": "identity"}, "Late is not the identity under start='identity'"),
}  # fmt: skip


ONCE_BUILT = ("one for all sites", "a layer of another's", "elsewhere")


@pytest.mark.parametrize(
    ("function", "attention", "arguments", "says"),
    [
        pytest.param(function, *case, id=f"{function.__name__}-{name}")
        for function in (apply_attention, plan_attention)
        for name, case in REFUSED.items()
        # A plan builds nothing for the network, nor for each of its sites.
        if function is apply_attention or name not in ONCE_BUILT
    ],
)
def test_it_is_refused_before_anything_changes(function, attention, arguments, says):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    before = snapshots.of_all(model, optimizer)
    with pytest.raises(ArgumentError, match=says):
        function(model, attention, min_channels=8, optimizers=optimizer, **arguments)
    assert snapshots.of_all(model, optimizer) == before


def test_a_layer_of_the_networks_own_is_refused_and_is_not_touched():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).bfloat16()
    model.append(nn.Conv2d(8, 8, 1))
    before = snapshots.of_model(model)
    with pytest.raises(ArgumentError, match="must be built for each site"):
        apply_attention(model, lambda channels: model[1], min_channels=8, include="2")
    assert snapshots.of_model(model) == before
    assert [p.dtype for p in model[1].parameters()] == [torch.bfloat16] * 2


def test_an_attention_for_one_size_alone_is_taken():
    class Positions(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(channels, 14, 14))

        def forward(self, x):
            return x + self.bias

    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    assert len(apply_attention(model, Positions, min_channels=8).chosen) == 1


def test_random_states_stay_as_they_were():
    class Draws(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.scale = float(torch.randn(()))  # not on the meta device

        def forward(self, x):
            return x * self.scale

    model = nn.Sequential(nn.Conv2d(3, 8, 1))
    before = torch.random.get_rng_state()
    plan_attention(model, Draws, min_channels=8)
    assert torch.equal(torch.random.get_rng_state(), before)


# The shared keywords.


@pytest.mark.parametrize("function", [*FUNCTIONS, apply_attention, plan_attention])
def test_signatures_show_every_shared_keyword_with_its_default(function):
    parameters = inspect.signature(function).parameters
    defaults = {
        "min_channels": None, "placement": "conv", "replace": False, "include": None,
        "exclude": None, "filter_fn": None, "optimizers": None, "param_group": None,
    }  # fmt: skip
    assert set(defaults) == {*SITES, *TRAINED}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert all(name in function.__annotations__ for name in defaults)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signatures_show_every_argument_of_the_attention(function):
    kind = EfficientChannelAttention if "eca" in function.__name__ else SqueezeExcitation
    shown = inspect.signature(function).parameters
    own = inspect.signature(kind).parameters
    for name in set(own) - {"channels", "device", "dtype"}:
        assert shown[name].default == own[name].default


def by_name(model):
    return apply_attention(model, "eca")


def by_eca(model):
    return apply_eca(model)


def by_squeeze_excite(model):
    return apply_squeeze_excite(model)


@pytest.mark.parametrize("call", [by_name, by_eca, by_squeeze_excite])
def test_it_is_the_caller_who_is_warned(call):
    with pytest.warns(NothingAttendedWarning) as caught:
        call(nn.Linear(2, 2))
    assert [warning.filename for warning in caught] == [__file__]
