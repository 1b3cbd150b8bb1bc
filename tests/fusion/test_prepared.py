"""A site's calls are prepared at the first of them: what changes after it is seen."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from composer_attn.attention import SqueezeExcitation
from composer_attn.functional import apply_eca, apply_squeeze_excite, fuse_attention
from composer_attn.fusion import handoff
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.handoff import Producer
from composer_attn.ops import beforehand
from composer_attn.ops.prepared_site import PreparedSite
from tests.fusion.test_norm_attributes import network, outcome

SHAPE = (2, 3, 6, 5)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, dtype=torch.float64)


def layer_of(net: nn.Module) -> nn.Module:
    attention = net[0].attention
    return attention.fc2 if isinstance(attention, SqueezeExcitation) else attention.conv


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def give_memory(of: torch.Tensor, change) -> None:
    of.data = change(of.data)


def replace_attention(net):
    net[0].attention = copy.deepcopy(net[0].attention).requires_grad_(False)
    for value in net[0].attention.parameters():
        nn.init.normal_(value)


def replace_layer(net):
    attention, layer = net[0].attention, copy.deepcopy(layer_of(net))
    nn.init.normal_(layer.weight)
    setattr(attention, "fc2" if hasattr(attention, "fc2") else "conv", layer)


def replace_gate(net):
    other = type(net[0].attention)(6, gate="tanh", start="identity", dtype=torch.float64)
    net[0].attention.gate, net[0].attention.start = other.gate, other.start
    net[0].attention._gate = other._gate


CHANGES = {
    "attention": replace_attention,
    "layer": replace_layer,
    "gate": replace_gate,
    "weight": lambda net: nn.init.normal_(layer_of(net).weight),
    "another weight": lambda net: setattr(
        layer_of(net), "weight", nn.Parameter(layer_of(net).weight.detach() * 3)
    ),
    "table of weights": lambda net: layer_of(net).__dict__.update(
        _parameters={name: nn.Parameter(3 * p) for name, p in layer_of(net).named_parameters()}
        | {"bias": None}
    ),
    "table of statistics": lambda net: net[1].__dict__.update(
        _buffers={name: 3 * value for name, value in net[1].named_buffers()}
    ),
    "other memory": lambda net: give_memory(layer_of(net).weight, lambda w: w.clone() * 3),
    "strides": lambda net: give_memory(
        layer_of(net).weight, lambda w: w.repeat_interleave(2, -1)[..., ::2] * 3
    ),
    "negative": lambda net: give_memory(layer_of(net).weight, lambda w: torch._neg_view(w)),
    "hook": lambda net: layer_of(net).register_forward_hook(lambda _, given, made: made * 3),
    "hook of the attention": lambda net: net[0].attention.register_forward_hook(
        lambda _, given, made: made * 3
    ),
    "hook before": lambda net: layer_of(net).register_forward_pre_hook(
        lambda _, given: (given[0] * 3,)
    ),
    "forward": lambda net: setattr(
        layer_of(net), "forward", lambda x: layer_of(net).weight.sum() * x.new_ones(len(x), 6)
    ),
    "parametrized": lambda net: parametrize.register_parametrization(
        layer_of(net), "weight", Doubled()
    ),
    "pruned": lambda net: prune.random_unstructured(layer_of(net), "weight", 0.5),
    "statistics": lambda net: setattr(net[1], "running_mean", net[1].running_mean * 3),
    "no statistics": lambda net: (
        net[1].__setattr__("running_mean", None) or net[1].__setattr__("running_var", None)
    ),
    "memory of statistics": lambda net: give_memory(net[1].running_var, lambda v: v * 3),
    "weight of the norm": lambda net: setattr(net[1], "weight", None),
    "bias of the norm": lambda net: nn.init.normal_(net[1].bias),
    "eps": lambda net: setattr(net[1], "eps", 0.5),
    "momentum": lambda net: setattr(net[1], "momentum", None),
    "mode": lambda net: net.train(not net.training),
    "mode of the norm": lambda net: net[1].train(not net[1].training),
    "frozen": lambda net: net.requires_grad_(False) and net[0].bias.requires_grad_(),
    "channels last": lambda net: net.to(memory_format=torch.channels_last),
    "loaded": lambda net: net.load_state_dict({k: v * 2 for k, v in net.state_dict().items()}),
    "assigned": lambda net: net.load_state_dict(
        {k: v * 2 for k, v in net.state_dict().items()}, assign=True
    ),
}


def prepared(attention: str, training: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """Return a network, and the same fused, both after a call."""
    torch.manual_seed(0)
    plain = network("conv") if attention == "se" else nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
    ).double()  # fmt: skip
    if attention == "eca":
        apply_eca(plain, min_channels=1)
        nn.init.normal_(plain[1].weight)
    plain.train(training)
    fused = copy.deepcopy(plain)
    assert fuse_attention(fused, "cpp").fused
    x = draw()
    for net in (plain, fused):
        outcome(net, x)
        with torch.no_grad():
            net(x)
    assert fused[0]._attn_fused._prepared is not None
    return plain, fused


def agree(plain, fused, x):
    (error, expected), (found_error, found) = outcome(plain, x), outcome(fused, x)
    assert found_error == error
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    if not error:
        with torch.no_grad():
            torch.testing.assert_close(fused(x), plain(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["se", "eca"])
def test_changes_after_a_call_are_seen(attention, training, change):
    plain, fused = prepared(attention, training)
    for net in (plain, fused):
        torch.manual_seed(1)
        CHANGES[change](net)
    agree(plain, fused, draw())
    agree(plain, fused, draw())


@pytest.mark.parametrize(
    "shape", [(1, 3, 6, 5), (5, 3, 4, 4), (2, 3, 3, 3), (0, 3, 6, 5), (3, 6, 5)]
)
@pytest.mark.parametrize("training", [True, False])
def test_other_shapes(shape, training):
    plain, fused = prepared("se", training)
    agree(plain, fused, torch.randn(shape, dtype=torch.float64))
    agree(plain, fused, draw().contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_other_dtypes(dtype, tolerance):
    plain, fused = (net.to(dtype) for net in prepared("se", False))
    x = draw().to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=tolerance, atol=tolerance)


def test_an_observer_is_called():
    _, fused = prepared("eca", True)
    seen = []
    fused[0].attention.observer = seen.append
    fused(draw())
    fused[0].attention.observer = None
    fused(draw())
    assert [s.shape for s in seen] == [(2, 6)]


def test_pruned_channels():
    plain, fused = prepared("se", False)
    for net in (plain, fused):
        conv, norm, attention = net[0], net[1], net[0].attention
        for module, names in ((conv, ("weight", "bias")), (norm, ("weight", "bias"))):
            for name in names:
                setattr(module, name, nn.Parameter(getattr(module, name).detach()[:4].clone()))
        norm.running_mean, norm.running_var = norm.running_mean[:4], norm.running_var[:4]
        conv.out_channels = norm.num_features = 4
        attention.fc1.weight = nn.Parameter(attention.fc1.weight.detach()[:, :4].clone())
        attention.fc2.weight = nn.Parameter(attention.fc2.weight.detach()[:4].clone())
    agree(plain, fused, draw())


def test_it_is_prepared_once(monkeypatch):
    plain, fused = prepared("se", False)
    made = []
    remember = PreparedSite.remember
    monkeypatch.setattr(PreparedSite, "remember", lambda *given: made.append(1) or remember(*given))
    for _ in range(3):
        agree(plain, fused, draw())
    assert not made
    layer_of(fused).weight.data = layer_of(fused).weight.data.clone()
    agree(plain, fused, draw())
    agree(plain, fused, draw())
    assert len(made) == 1


def test_copies_and_pickles_do_not_have_what_was_prepared():
    plain, fused = prepared("se", False)
    copied, loaded = copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))
    for net in (copied, loaded):
        assert isinstance(net[0]._attn_fused, Producer)
        assert net[0]._attn_fused._prepared is None
        agree(plain, net, draw())


@pytest.mark.parametrize("applying", [apply_squeeze_excite, apply_eca])
def test_functional_calls_use_the_given_parameters(applying):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).double().eval()
    applying(net, min_channels=1)
    plain = copy.deepcopy(net)
    fuse_attention(net, "cpp")
    x = draw()
    with torch.no_grad():
        net(x)
        given = {name: torch.randn_like(value) for name, value in net.named_parameters()}
        found, expected = (torch.func.functional_call(each, given, (x,)) for each in (net, plain))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(net(x), plain(x))


class Returning(nn.Conv2d):
    """A convolution that returns its input."""

    def _conv_forward(self, input, weight, bias):
        return input


@torch.no_grad()
def test_only_new_tensors_are_attended_in_place():
    net = nn.Sequential(Returning(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()).double().eval()
    apply_squeeze_excite(net, 3, 1)
    plain = copy.deepcopy(net)
    fuse_attention(net, "cpp")
    x = draw(2, 6, 5, 4)
    given = x.clone()
    for _ in range(2):
        torch.testing.assert_close(net(x), plain(x))
        assert torch.equal(x, given)


class Counted:
    """A function, and what its calls returned."""

    def __init__(self, function):
        self.function, self.results = function, []

    def __call__(self, *given):
        self.results.append(self.function(*given))
        return self.results[-1]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("attention", ["se", "eca"])
def test_maps_are_attended_in_place(attention, dtype, tolerance, memory_format, monkeypatch):
    plain, fused = prepared(attention, False)
    fused.to(dtype)
    monkeypatch.setattr(handoff, "attend_in_place", counted := Counted(handoff.attend_in_place))
    for shape in ((1, 3, 66, 58), (1, 3, 8, 7), (3, 3, 12, 9)):
        x = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
        with torch.no_grad():
            found, expected = fused(x), plain(x.double())
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert counted.results == [True] * (3 if dtype == torch.float64 else 2)


@pytest.mark.parametrize("inference", [False, True])
def test_large_maps_leave_the_scales_to_the_norm(inference, monkeypatch):
    plain, fused = prepared("se", False)
    monkeypatch.setattr(beforehand, "_SMALL", 10)
    monkeypatch.setattr(handoff, "attend_in_place", counted := Counted(handoff.attend_in_place))
    x = draw()
    with torch.inference_mode(inference), torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
    assert counted.results == [False]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["se", "eca"])
@pytest.mark.parametrize(
    ("options", "known"),
    [({}, True), ({"bias": False}, True), ({"stride": 2}, False), ({"padding": 1}, False),
     ({"groups": 2}, False), ({"kernel_size": 3}, False)],
    ids=str,
)  # fmt: skip
def test_one_image_is_attended_before_its_convolution_runs(attention, options, known, monkeypatch):
    conv = nn.Conv2d(4, 24, **{"kernel_size": 1} | options)
    plain = nn.Sequential(conv, nn.BatchNorm2d(24), nn.ReLU()).double().eval()
    for value in (*plain[1].parameters(), plain[1].running_mean):
        nn.init.normal_(value)
    apply = apply_eca if attention == "eca" else apply_squeeze_excite
    apply(plain, min_channels=1)
    fused = copy.deepcopy(plain)
    fuse_attention(fused, "cpp")
    monkeypatch.setattr(handoff, "attended_output", counted := Counted(handoff.attended_output))
    large, small = draw(1, 4, 90, 91), draw(1, 4, 10, 11)
    for last in (torch.contiguous_format, torch.channels_last):
        for x in (large, small, large, torch.cat([large, large])):
            given = x.contiguous(memory_format=last)
            torch.testing.assert_close(fused(given), plain(given), rtol=1e-11, atol=1e-11)

    def attended() -> int:
        return len([made for made in counted.results if made is not None])

    # All large images but the first, at which the calls are prepared.
    assert attended() == 3 * known
    seen = []
    fused[0].attention.observer = plain[0].attention.observer = seen.append
    torch.testing.assert_close(fused(large), plain(large), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(*seen, rtol=1e-11, atol=1e-11)
    assert attended() == 3 * known


@torch.no_grad()
def test_a_transposed_convolution_is_not_known_before_it_runs():
    plain = nn.Sequential(nn.ConvTranspose2d(4, 24, 1), nn.BatchNorm2d(24)).double().eval()
    apply_squeeze_excite(plain, min_channels=1)
    fused = copy.deepcopy(plain)
    fuse_attention(fused, "cpp")
    x = draw(1, 4, 90, 91)
    for _ in range(2):
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_autocast_casts_the_convolution():
    plain = nn.Sequential(nn.Conv2d(4, 24, 1), nn.BatchNorm2d(24)).eval()
    apply_squeeze_excite(plain, min_channels=1)
    fused = copy.deepcopy(plain)
    fuse_attention(fused, "cpp")
    x = torch.randn(1, 4, 90, 91)
    fused(x)
    with torch.autocast("cpu"):
        for _ in range(2):
            found, expected = fused(x), plain(x)
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("training", [True, False])
def test_norms_are_deferred_with_gradients_or_on_large_maps(training, monkeypatch):
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU()).double()
    nn.init.normal_(plain[1].weight)
    plain.train(training)
    fused = copy.deepcopy(plain)
    assert fuse_attention(fused, "cpp", norms=True).norms
    seen = []
    fused[1].register_forward_hook(lambda module, given, made: seen.append(type(made)))
    x = draw()
    agree(plain, fused, x)
    monkeypatch.setattr(beforehand, "_SMALL", 10)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-11, atol=1e-11)
    assert seen == [Deferred, torch.Tensor, Deferred]
