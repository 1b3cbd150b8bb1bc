"""Fused networks compute, and learn, what unfused ones do."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from composer_attn.functional import fuse_attention
from tests.fusion.networks import Net, each_shape, pair
from tests.surgeries import SURGERIES, train_step

each_surgery = pytest.mark.parametrize("surgery", SURGERIES)
each_placement = pytest.mark.parametrize("placement", ["conv", "norm"])
each_format = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)


def assert_equal(found: dict, expected: dict, tolerance: float = 1e-12) -> None:
    """Compare to a share of each tensor's largest number (at least 1)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        bound = tolerance * max(1, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) <= bound, name


def gradients(model: nn.Module) -> dict:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def learn(model: nn.Module, batches: list, lr: float = 0.01) -> list[float]:
    """Train on batches by SGD; return the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr, momentum=0.9), []
    for x in batches:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@each_surgery
@each_placement
@each_shape
def test_outputs_gradients_and_statistics_agree(build, shape, surgery, placement):
    plain, fused = pair(build, surgery, placement=placement, min_channels=8)
    for _ in range(5):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 1
        y, found = plain(x.requires_grad_()), fused(x.detach().requires_grad_())
        assert_equal({"": found.detach()}, {"": y.detach()})
    weight = torch.randn_like(y)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    for model, x in zip((plain, fused), inputs, strict=True):
        model.zero_grad()
        (model(x) * weight).sum().backward()
    assert_equal(gradients(fused), gradients(plain))
    assert_equal({"": inputs[1].grad}, {"": inputs[0].grad})
    assert_equal(fused.state_dict(), plain.state_dict())
    evaluated = [model.eval()(x).detach() for model in (plain, fused)]
    assert_equal({"": evaluated[1]}, {"": evaluated[0]})


@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("start", ["paper", "identity"])
@each_format
def test_every_gate_agrees_in_every_layout(gate, start, layout):
    plain, fused = pair(Net, gate=gate, start=start, min_channels=8)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64).to(memory_format=layout)
    for model in (plain, fused):
        model.to(memory_format=layout)
        model(x).square().sum().backward()
    assert_equal(gradients(fused), gradients(plain))


@each_surgery
def test_a_whole_training_run_has_the_same_losses(surgery):
    plain, fused = pair(Net, surgery, min_channels=8)
    batches = [torch.randn(4, 3, 9, 9, dtype=torch.float64) for _ in range(20)]
    expected, found = learn(plain, batches), learn(fused, batches)
    assert expected[-1] < expected[0] / 2
    assert found == pytest.approx(expected, rel=1e-9)
    assert_equal(fused.state_dict(), plain.state_dict(), 1e-9)


@each_surgery
@each_placement
@each_format
def test_the_backend_chosen_by_default_agrees(surgery, placement, layout):
    plain, fused = pair(Net, surgery, min_channels=8, placement=placement)
    fuse_attention(fused)
    for _ in range(5):
        x = torch.randn(3, 3, 9, 7, dtype=torch.float64).to(memory_format=layout)
        for model in (plain, fused):
            model.zero_grad()
            model.to(memory_format=layout)(x).square().sum().backward()
    assert_equal(gradients(fused), gradients(plain))
    assert_equal(fused.state_dict(), plain.state_dict())


def test_two_runs_are_equal_to_the_bit():
    first = pair(Net, dtype=torch.float32, min_channels=8)[1]
    second = copy.deepcopy(first)
    batches = [torch.randn(4, 3, 9, 9) for _ in range(5)]
    assert learn(first, batches) == learn(second, batches)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize("frozen", ["bn1", "layers.0.bn1", "layers.1.downsample.1"])
@pytest.mark.parametrize("how", ["eval", "no gradients"])
def test_frozen_norms_agree(frozen, how):
    models = pair(Net, min_channels=8)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64)
    for model in models:
        norm = model.get_submodule(frozen)
        _ = norm.eval() if how == "eval" else norm.requires_grad_(False)
        train_step(model, torch.optim.SGD(model.parameters(), 0.1), x)
    plain, fused = models
    assert_equal(gradients(fused), gradients(plain))
    assert_equal(fused.state_dict(), plain.state_dict())


def test_one_image_and_a_large_mean():
    plain, fused = pair(Net, min_channels=8)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64) + 1e3
    assert_equal({"": fused(x).detach()}, {"": plain(x).detach()}, 1e-9)


@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (0, 3, 4, 4), (2, 3, 4), (2, 5, 4, 4), (2, 3, 4, 4, 4)], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_inputs_that_a_network_refuses_are_refused_alike(placement, shape, training):
    def build():
        return nn.Sequential(nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU())

    found = []
    for model in pair(build, placement=placement):
        model.train(training)
        try:
            found.append(model(torch.ones(shape, dtype=torch.float64)).shape)
        except (RuntimeError, ValueError) as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]


def test_autocast_agrees():
    plain, fused = pair(Net, dtype=torch.float32, min_channels=8)
    x = torch.randn(4, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fused(x), plain(x)
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_checkpointed_activations_agree():
    plain, fused = pair(Net, min_channels=8)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64, requires_grad=True)
    plain(x).square().sum().backward()
    torch.utils.checkpoint.checkpoint(fused, x, use_reentrant=False).square().sum().backward()
    assert_equal(gradients(fused), gradients(plain))


def test_modules_called_directly_compute_the_same_as_before():
    plain, fused = (model.eval() for model in pair(Net, min_channels=8))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    y = plain.conv1(x)
    assert torch.equal(fused.conv1(x), y)
    assert torch.equal(fused.bn1(y), plain.bn1(y))
    assert torch.equal(fused.relu(y), plain.relu(y))
    part, expected = fused.layers[:1], plain.layers[:1]  # a new Sequential of the same blocks
    assert_equal({"": part(y).detach()}, {"": expected(y).detach()})


def test_threads_compute_the_same():
    plain, fused = (model.eval() for model in pair(Net, min_channels=8))
    batches = [torch.randn(2, 3, 9, 7, dtype=torch.float64) for _ in range(32)]
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        found = list(pool.map(lambda x: fused(x).detach(), batches))
    for x, y in zip(batches, found, strict=True):
        assert_equal({"": y}, {"": plain(x).detach()})
