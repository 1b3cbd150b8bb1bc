"""Fused networks compute what unfused ones do, on each kind of device that is here."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from composer_attn import apply_eca, apply_squeeze_excite, fuse_attention, unfuse_attention
from tests.fusion.networks import SHAPES, Net, pair
from tests.fusion.test_numbers import assert_equal, gradients

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
each_device = pytest.mark.parametrize("device", DEVICES)
only_cuda = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a CUDA device")


def randomize(model: nn.Module) -> nn.Module:
    """Give parameters and statistics values that hide no fault, as fresh ones would."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for each in (module.weight, module.bias):
                if each is not None:
                    nn.init.normal_(each, 1, 0.3)
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


@each_device
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize("surgery", ["squeeze_excite", "eca"])
@pytest.mark.parametrize("build", ["net", "sequence2d", "resnet50"])
def test_float64_agrees_in_training_and_evaluation(build, surgery, placement, layout, device):
    make, shape = SHAPES[build]
    plain, fused = pair(make, surgery, placement=placement, min_channels=8)
    randomize(plain)
    fused.load_state_dict(plain.state_dict())
    fuse_attention(fused)
    for model in (plain, fused):
        model.to(device, memory_format=layout)
    x = torch.randn(shape, dtype=torch.float64, device=device).to(memory_format=layout)
    weight = None
    for model in (plain, fused):
        y = model(x)
        weight = torch.randn_like(y) if weight is None else weight
        (y * weight).sum().backward()
    assert_equal(gradients(fused), gradients(plain), 1e-10)
    assert_equal(fused.state_dict(), plain.state_dict(), 1e-10)
    evaluated = [model.eval()(x).detach() for model in (plain, fused)]
    assert_equal({"": evaluated[1]}, {"": evaluated[0]}, 1e-10)


@each_device
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("build", ["mobilenet_v3_small", "regnet_y_400mf", "efficientnet_b0"])
def test_attention_of_its_own_agrees_in_training_and_evaluation(build, norms, device):
    torch.manual_seed(0)
    plain = randomize(torchvision.models.get_model(build)).double().to(device)
    for module in plain.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    fused = copy.deepcopy(plain)
    fuse_attention(fused, norms=norms)
    x = torch.randn(3, 3, 40, 40, dtype=torch.float64, device=device)
    for model in (plain, fused):
        model.to(memory_format=torch.channels_last)(x).square().sum().backward()
    # On CUDA, torch's hard sigmoid and hard swish multiply by a sixth that is a float32.
    exact = 1e-10 if device == "cpu" or build != "mobilenet_v3_small" else 1e-6
    assert_equal(gradients(fused), gradients(plain), exact)
    assert_equal(fused.state_dict(), plain.state_dict(), exact)
    evaluated = [model.eval()(x).detach() for model in (plain, fused)]
    assert_equal({"": evaluated[1]}, {"": evaluated[0]}, exact)


@each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("surgery", [apply_squeeze_excite, apply_eca])
def test_autocast_is_as_exact_fused_as_it_is_unfused(surgery, dtype, device):
    torch.manual_seed(0)
    exact = randomize(Net().double())
    surgery(exact, min_channels=8)
    x = torch.randn(16, 3, 24, 24, dtype=torch.float64)
    expected = exact.to(device)(x.to(device)).detach()
    errors = []
    for fuse in (False, True):
        model = copy.deepcopy(exact).float()
        if fuse:
            fuse_attention(model)
        with torch.autocast(device, dtype):
            found = model(x.float().to(device))
        found.float().square().mean().backward()
        assert all(torch.isfinite(each).all() for each in gradients(model).values())
        errors.append(float((found.double() - expected).norm() / expected.norm()))
    assert errors[1] < 1.5 * errors[0] + 1e-4


@each_device
def test_a_fused_network_goes_to_a_device_and_back(device):
    plain, fused = pair(Net, min_channels=8)
    fuse_attention(fused)
    x = torch.randn(3, 3, 9, 7, dtype=torch.float64)
    expected = plain(x).detach()
    for where in ("cpu", device, "cpu"):
        found = copy.deepcopy(fused).to(where)(x.to(where))
        assert_equal({"": found.detach().cpu()}, {"": expected}, 1e-10)
        fused.to(where)
    unfuse_attention(fused)
    assert_equal({"": fused(x).detach()}, {"": expected}, 1e-12)


@only_cuda  # tests/export/test_compile.py has this on a CPU
@pytest.mark.parametrize("surgery", ["squeeze_excite", "eca"])
def test_compiled_as_a_whole_it_agrees(surgery):
    plain, fused = pair(Net, surgery, dtype=torch.float32, min_channels=8)
    x = torch.randn(4, 3, 9, 9, device="cuda")
    losses = []
    for model in (plain.cuda(), torch.compile(fused.cuda())):
        loss = model(x).square().mean()
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    assert_equal(gradients(fused), gradients(plain), 1e-3)


@only_cuda
def test_a_captured_graph_computes_and_learns_what_eager_calls_do():
    fused = pair(Net, dtype=torch.float32, min_channels=8)[1]
    fuse_attention(fused)
    captured = copy.deepcopy(fused).cuda()
    graphed = torch.cuda.make_graphed_callables(captured, (torch.randn(4, 3, 9, 9).cuda(),))
    fused.cuda().load_state_dict(captured.state_dict())
    for _ in range(3):
        x = torch.randn(4, 3, 9, 9, device="cuda")
        for model, call in ((fused, fused), (captured, graphed)):
            # A graph writes to the same gradients at each replay, so they are not added up.
            model.zero_grad()
            call(x).square().mean().backward()
        assert_equal(gradients(captured), gradients(fused), 1e-4)
    assert_equal(captured.state_dict(), fused.state_dict(), 1e-4)


@only_cuda
def test_another_stream_computes_its_own_numbers():
    plain, fused = pair(Net, min_channels=8)
    fuse_attention(fused)
    x = torch.randn(64, 3, 96, 96, dtype=torch.float64, device="cuda")
    expected = plain.cuda()(x).detach()
    fused.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = fused(x)
        found.sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    assert_equal({"": found.detach()}, {"": expected}, 1e-10)
