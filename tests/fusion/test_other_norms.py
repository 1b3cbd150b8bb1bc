"""Networks with other norms than batch norm are fused, and compute what they compute unfused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from composer.algorithms.ghost_batchnorm import apply_ghost_batchnorm
from torch import nn
from torch.utils.checkpoint import checkpoint

from composer_attn.attention import EfficientChannelAttention
from composer_attn.functional import (
    apply_eca,
    apply_squeeze_excite,
    fuse_attention,
    unfuse_attention,
)
from composer_attn.fusion.deferred_tensor import Deferred
from composer_attn.fusion.fused_norms import is_fused
from composer_attn.surgery.attend import attend
from tests.fusion.networks import Net
from tests.fusion.own_networks import CHANNELS, assert_same, everything, small
from tests.other_norms import NORMS, OTHERS, at_random

IMAGES = (4, 3, 9, 7)


class Residual(nn.Module):
    """A branch that ends with a norm, and its shortcut, which has a norm, too."""

    def __init__(self, norm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), norm(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 1), norm(12)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 12, 1), norm(12))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def own(norm) -> nn.Module:
    model = small()
    model.norm = norm(CHANNELS)
    return model


def surgically(surgery, norm, **options) -> nn.Module:
    model = Residual(norm)
    surgery(model, min_channels=4, **options)
    return model


# Networks by the order of norm and attention, the number of fused attentions, and of other norms.
NETWORKS = {
    "attention, norm": (partial(surgically, apply_squeeze_excite), 3, 0),
    "norm, attention": (partial(surgically, apply_eca, placement="norm"), 3, 0),
    "norm, activation, attention": (own, 1, 0),
    "norm alone": (Residual, 0, 2),  # the shortcut's is added to the other's
}
ATTENDED = {name for name in OTHERS if "ghost" not in name and name != "frozen"}


def build(network: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    norm = {"group": 4}.get(name) and (lambda c: nn.GroupNorm(4, c))
    made = NETWORKS[network][0](norm or partial(NORMS[name], 2))
    return at_random(made).double()


def pair(network: str, name: str, backend="reference") -> tuple[nn.Module, nn.Module]:
    """Build a network and a fused copy."""
    plain = build(network, name)
    fused = copy.deepcopy(plain)
    plan = fuse_attention(fused, backend, norms=True)
    assert (len(plan.fused), len(plan.norms)) == NETWORKS[network][1:]
    return plain, fused


def cases():
    # Surgery does not take norms of other packages for sites; they become attended by conversion.
    return [(n, k) for n in NETWORKS for k in OTHERS if n != "norm, attention" or k in ATTENDED]


each_case = pytest.mark.parametrize(("network", "name"), cases())
each_network = pytest.mark.parametrize("network", NETWORKS)


def draw(shape=IMAGES) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@each_case
@pytest.mark.parametrize("training", [True, False])
def test_fused_equals_unfused(network, name, training):
    for backend, layout in (("reference", torch.contiguous_format), ("cpp", torch.channels_last)):
        plain, fused = (m.train(training) for m in pair(network, name, backend))
        x = draw().to(memory_format=layout)
        for _ in range(2):
            assert_same(everything(fused, x), everything(plain, x))


@each_case
def test_no_map_is_written_between_the_parts(network, name, monkeypatch):
    _, fused = pair(network, name)
    written = []
    monkeypatch.setattr(Deferred, "_numbers", lambda self: written.append(self))
    if network != "norm alone":
        fused(draw())
    assert not written


@pytest.mark.parametrize("name", OTHERS)
def test_two_maps_are_kept_for_backward(name):
    _, fused = pair("norm, activation, attention", name)
    kept = set()

    def keep(value):
        if value.dim() == 4 and value.shape[1:3] == (CHANNELS, IMAGES[2] - 2):
            kept.add(value.data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = fused(draw())
    # The first convolution's output, and the second's input, while the graph lives.
    assert len(kept) == 2
    y.sum().backward()


@each_case
def test_state_dicts_are_equal_and_fusion_is_undone(network, name):
    plain, fused = pair(network, name)
    state, expected = fused.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    unfuse_attention(fused)
    assert not any(map(is_fused, fused.modules()))
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in fused.modules()] == [vars(m).keys() for m in plain.modules()]


@each_case
def test_copies_pickles_and_checkpoints(network, name):
    plain, fused = pair(network, name)
    x = draw()
    expected = everything(copy.deepcopy(plain), x)
    assert_same(everything(copy.deepcopy(fused), x), expected)
    assert_same(everything(pickle.loads(pickle.dumps(fused)), x), expected)

    def run(model):
        return partial(checkpoint, model, use_reentrant=False)

    # Both run every norm twice.
    assert_same(everything(fused, x, run(fused)), everything(plain, x, run(plain)))


@each_case
@pytest.mark.parametrize(
    "way", ["no_grad", "inference_mode", pytest.param("trace", marks=pytest.mark.slow)]
)
def test_without_gradients_and_traced(network, name, way):
    plain, fused = (model.eval() for model in pair(network, name))
    x = draw()
    if way == "trace":
        traced = torch.jit.trace(fused, x)
        torch.testing.assert_close(traced(x), plain(x), rtol=1e-12, atol=1e-12)
        return
    with getattr(torch, way)():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ATTENDED))
def test_hooks_on_attentions_see_the_same(name):
    seen: list[list[torch.Tensor]] = []
    x = draw()
    for model in pair("norm, attention", name):
        seen.append([])
        hook = lambda module, args, y, into=seen[-1]: into.extend([args[0].detach(), y.detach()])  # noqa: E731
        for module in model.modules():
            if "attention" in module._modules:
                module.attention.register_forward_hook(hook)
        everything(model, x)
    assert len(seen[0]) == len(seen[1]) == 6
    for found, expected in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_hooks_within_ghost_batch_norm_run():
    plain, fused = pair("norm, activation, attention", "ghost")
    shapes: list[list[tuple]] = [[], []]
    for model, into in zip((plain, fused), shapes, strict=True):
        model.norm.batchnorm.register_forward_hook(lambda m, args, y, i=into: i.append(y.shape))
    x = draw()
    assert_same(everything(fused, x), everything(plain, x))
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 2


def test_what_composers_algorithm_makes_of_a_network_is_fused():
    torch.manual_seed(0)
    plain = at_random(Net()).double()
    apply_ghost_batchnorm(plain, ghost_batch_size=2)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # Net has one of None, which ghost batch norm refuses
    apply_squeeze_excite(plain, min_channels=8)
    fused = copy.deepcopy(plain)
    plan = fuse_attention(fused, "reference")
    assert len(plan.fused) == 7
    assert not plan.alone
    x = draw((5, 3, 9, 7))
    assert_same(everything(fused, x), everything(plain, x))
    with pytest.raises(ValueError, match="Worker batch size 1 < ghost_batch_size 2"):
        fused(x[:1])


class Hidden(nn.BatchNorm2d):
    """A norm that overrides forward."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_ghost_batch_norm_around_another_norm_is_not_fused():
    for change in ("class", "attended"):
        plain = build("norm, activation, attention", "ghost")
        inner = plain.norm.batchnorm
        if change == "class":
            inner.__class__ = Hidden
        else:
            attend(inner, EfficientChannelAttention(CHANNELS).double())
        fused = copy.deepcopy(plain)
        plan = fuse_attention(fused, "reference", norms=True)
        assert not [site for site in (*plan.fused, *plan.norms) if site.norm == "norm"]
        x = draw()
        assert_same(everything(fused, x), everything(plain, x))


TIMMS = {
    "SyncBatchNormAct": lambda layers: layers.convert_sync_batchnorm(
        nn.Sequential(layers.BatchNormAct2d(CHANNELS, act_layer=nn.SiLU))
    )[0],
    "FrozenBatchNormAct2d": lambda layers: layers.FrozenBatchNormAct2d(CHANNELS, act_layer=nn.SiLU),
    "GroupNormAct": lambda layers: layers.GroupNormAct(CHANNELS, 4, act_layer=nn.SiLU),
}


@pytest.mark.parametrize("name", TIMMS)
@pytest.mark.parametrize("training", [True, False])
def test_timms_norms_with_an_activation(name, training):
    norm = TIMMS[name](pytest.importorskip("timm.layers"))
    assert type(norm).__name__ == name
    torch.manual_seed(0)
    plain = small(activation="identity")
    plain.norm = norm
    plain = at_random(plain).double().train(training)
    fused = copy.deepcopy(plain)
    (site,) = fuse_attention(fused, "reference").fused
    assert (site.norm, site.function) == ("norm", "silu")
    x = draw()
    assert_same(everything(fused, x), everything(plain, x))


@pytest.mark.slow
def test_torch_compile_computes_the_modules():
    plain, fused = pair("norm, activation, attention", "group")
    x = draw()
    compiled = torch.compile(fused, backend="aot_eager")
    assert_same(everything(fused, x, compiled), everything(plain, x))
    plain, fused = pair("attention, norm", "group")
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    assert_same(everything(fused, x, compiled), everything(plain, x))
