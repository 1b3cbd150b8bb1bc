"""A folded output attended in place: prepared once, and never with outdated tensors."""

import copy
import pickle

import pytest
import torch
from torch import nn

from composer_attn import attended_modules, fold_norms, unfold_norms
from composer_attn.errors import ArgumentError, BackendWarning
from composer_attn.folding import in_place
from composer_attn.ops.backends import excited_cpp, table
from tests.folding.networks import at_random, make
from tests.folding.test_numbers import each_attention


@pytest.fixture
def runs(monkeypatch):
    """Count the outputs that are attended in one call."""
    seen = []
    attend = excited_cpp.PreparedCall.attend
    monkeypatch.setattr(
        excited_cpp.PreparedCall,
        "attend",
        lambda call, z: attend(call, z) and not seen.append(z.shape),
    )
    return seen


def folded(applying, **options):
    """Return a folded network, the same without the backend, and images."""
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU())
    model = at_random(model)
    applying(model, **options)
    plain = fold_norms(copy.deepcopy(model), backend="reference")
    return fold_norms(model, backend="cpp"), plain, torch.randn(2, 3, 9, 10, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_attention
@torch.no_grad()
def test_whole_networks_agree_for_every_batch_size_and_layout(applying, runs):
    model, x = make("resnet")
    applying(model)
    plain = fold_norms(copy.deepcopy(model), backend="reference")
    fold_norms(model)
    sites = len(attended_modules(model))
    for last in (torch.contiguous_format, torch.channels_last):
        for count in (1, 3):
            images = torch.randn(count, *x.shape[1:], dtype=x.dtype).contiguous(memory_format=last)
            runs.clear()
            close(model(images), plain(images))
            assert len(runs) == sites


@each_attention
def test_gradients_traces_and_other_dtypes_have_operations_of_torch(applying, runs):
    model, plain, x = folded(applying)
    close(model(x), plain(x))
    with torch.no_grad():
        torch.jit.trace(model, x, check_trace=False)
        torch.export.export(model, (x,))
        model.bfloat16()(x.bfloat16())
    assert not runs


@each_attention
@torch.no_grad()
def test_other_weights_are_seen(applying, runs):
    model, plain, x = folded(applying)
    close(model(x), plain(x))
    for change in (
        lambda m: [p.mul_(1.5) for p in m.parameters()],
        lambda m: m.load_state_dict({k: v * 0.7 for k, v in m.state_dict().items()}),
        lambda m: m.load_state_dict({k: v / 2 for k, v in m.state_dict().items()}, assign=True),
        lambda m: m.float().double(),
        lambda m: setattr(m[0].attention.last_layer, "weight", nn.Parameter(
            m[0].attention.last_layer.weight + 1)),
        lambda m: [setattr(p, "data", p.data + 0.1) for p in m[0].attention.parameters()],
    ):  # fmt: skip
        for each in (model, plain):
            change(each)
        runs.clear()
        close(model(x), plain(x))
        assert len(runs) == 1
    assert model.float()(x.float()).dtype == torch.float32
    assert len(runs) == 2


@each_attention
@torch.no_grad()
def test_observers_and_hooks_see_what_they_did(applying, runs):
    model, plain, x = folded(applying)
    seen = {name: [] for name in ("ours", "plain")}
    for name, each in (("ours", model), ("plain", plain)):
        each[0].attention.observer = seen[name].append
        each(x)
        each[0].attention.observer = None
    close(*(found[0] for found in seen.values()))
    assert not runs
    handle = model[0].attention.last_layer.register_forward_hook(lambda m, i, o: o + 1)
    changed = model(x)
    handle.remove()
    assert not runs
    assert (changed - model(x)).abs().max() > 1e-3
    assert len(runs) == 1


@each_attention
@torch.no_grad()
def test_copies_and_pickles_are_prepared_again(applying, runs):
    model, plain, x = folded(applying)
    model(x)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for parameter in made[0].attention.parameters():
            parameter.zero_()
        assert (made(x) - plain(x)).abs().max() > 1e-3
        close(model(x), plain(x))
    assert unfold_norms(model) == ["1"]
    assert isinstance(model[1], nn.BatchNorm2d)


@each_attention
@torch.no_grad()
def test_squeezes_other_than_the_average_are_not_its(applying, runs):
    for squeeze in ("max", "std", "avg+max", "none"):
        model, plain, x = folded(applying, squeeze=squeeze)
        close(model(x), plain(x))
    assert not runs


@each_attention
@torch.no_grad()
def test_without_a_compiler_it_warns_and_computes_the_same(applying, runs, monkeypatch):
    def load():
        raise OSError("no C++ compiler found")

    monkeypatch.setattr(excited_cpp, "load", load)
    table._ready_excited.cache_clear()
    try:
        with pytest.warns(BackendWarning, match="no C\\+\\+ compiler found"):
            model, plain, x = folded(applying)
        close(model(x), plain(x))
    finally:
        table._ready_excited.cache_clear()
    assert not runs


@each_attention
@torch.no_grad()
def test_another_gate_is_seen(applying, runs):
    model, plain, x = folded(applying)
    close(model(x), plain(x))
    runs.clear()
    for net in (model, plain):
        attention = net[0].attention
        other = type(attention)(24, gate="hard_sigmoid")
        attention.gate, attention._gate = other.gate, other._gate
    close(model(x), plain(x))
    assert len(runs) == 1


def test_an_unknown_backend_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    with pytest.raises(ArgumentError, match="backend must be one of auto"):
        fold_norms(model, backend="avx")
    assert isinstance(model[1], nn.BatchNorm2d)


@each_attention
@torch.no_grad()
def test_a_deleted_network_is_freed(applying):
    model, _, x = folded(applying)
    before = len(in_place._prepared)
    model(x)
    assert len(in_place._prepared) == before + 1
    del model
    assert len(in_place._prepared) == before
