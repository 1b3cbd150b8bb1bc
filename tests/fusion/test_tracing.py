"""Fused networks in torch.fx, torch.compile, torch.export, torch.jit and ONNX."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor

from composer_attn.errors import ModelError
from composer_attn.functional import apply_eca, fuse_attention
from tests.export.attended import assert_same_numbers, longer
from tests.fusion.networks import Net, pair
from tests.surgeries import SURGERIES


def sequence() -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    return nn.Sequential(*layers, nn.Identity(), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1))


CASES = {
    f"{name}-{surgery}-{placement}": (build, shape, surgery, placement)
    for name, build, shape in (("net", Net, (2, 3, 9, 7)), ("sequence", sequence, (2, 3, 9, 7)))
    for surgery in SURGERIES
    for placement in ("conv", "norm")
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def models(case, dtype=torch.float32):
    """Build the plain and the fused network of a case, and a batch."""
    build, shape, surgery, placement = case
    torch._dynamo.reset()
    found = pair(build, surgery, dtype, placement=placement, min_channels=8)
    return *found, torch.randn(shape, dtype=dtype)


@each_case
def test_a_symbolic_trace_computes_the_same(case):
    plain, fused, x = models(case, torch.float64)
    traced = torch.fx.symbolic_trace(fused)
    torch.testing.assert_close(traced(x), plain(x), rtol=1e-12, atol=1e-12)


def test_features_of_a_fused_site_are_its_attended_output():
    plain, fused = (model.eval() for model in pair(Net, min_channels=8))
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    sites = ["conv1", "bn1", "layers.0.conv2", "layers.1.relu", "head"]
    expected = create_feature_extractor(plain, sites)(x)
    found = create_feature_extractor(fused, sites)(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_case
def test_compiled_as_one_graph_it_trains_the_same(case):
    plain, fused, x = models(case, torch.float64)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y, expected = compiled(x), plain(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.square().sum().backward()
    expected.square().sum().backward()
    for own, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("surgery", SURGERIES)
@pytest.mark.parametrize("placement", ["conv", "norm"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_what_other_calls_prepare_does_not_make_it_compile_again(surgery, placement, training):
    torch._dynamo.reset()
    plain, _ = pair(Net, surgery, torch.float32, placement=placement, min_channels=8)
    plain.train(training)
    fused = copy.deepcopy(plain)
    fuse_attention(fused, backend="cpp")
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 9, 7)
    with torch.set_grad_enabled(training), torch._dynamo.config.patch(error_on_recompile=True):
        for model in (compiled, fused, fused, compiled):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["layers.0.bn1", "layers.0", "conv1", "relu"])
@pytest.mark.parametrize("how", ["in place", "wrapped", "forward"])
def test_a_part_compiled_by_itself_computes_the_same(part, how):
    torch._dynamo.reset()
    plain, fused = pair(Net, min_channels=8)
    module = fused.get_submodule(part)
    if how == "in place":
        module.compile(backend="eager")
    elif how == "wrapped":
        fused.set_submodule(part, torch.compile(module, backend="eager"))
    else:  # of the class, as where a graph break lets only some of the frames be compiled
        compiled = torch.compile(type(module).forward, backend="eager")
        cls = type("Compiled", (type(module),), {"forward": lambda self, x: compiled(self, x)})
        module.__class__ = cls
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)


class Broken(nn.Module):
    """A graph break between convolution and norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.conv(x)
        torch._dynamo.graph_break()
        return self.norm(x)


def test_a_graph_break_between_convolution_and_norm_changes_nothing():
    torch._dynamo.reset()
    plain, fused = pair(Broken)
    compiled = torch.compile(fused, backend="eager")
    assert len(fuse_attention(fused, "reference").fused) == 1
    for size in (2, 3, 4):
        x = torch.randn(size, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-12, atol=1e-12)


@each_case
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_an_exported_program_takes_other_batches(case, strict):
    plain, fused, x = models(case)
    program = torch.export.export(
        fused.eval(), (x,), dynamic_shapes=({0: Dim("batch", min=2, max=64)},), strict=strict
    )
    for batch in (x, longer(x)):
        assert_same_numbers(program.module()(batch), plain.eval()(batch))


@each_case
@pytest.mark.filterwarnings(
    "error", r"ignore:`torch\.jit\.(trace|trace_method|save|load)` is:FutureWarning"
)
def test_a_jit_trace_without_warnings_takes_other_batches(case):
    plain, fused, x = models(case)
    traced = torch.jit.trace(fused.eval(), x)
    for batch in (x, longer(x)):
        assert_same_numbers(traced(batch), plain.eval()(batch))


@each_case
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_onnxruntime_computes_the_same(case, tmp_path):
    plain, fused, x = models(case)
    axes = {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    torch.onnx.export(fused.eval(), (x,), str(tmp_path / "model.onnx"), dynamo=False, **axes)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for batch in (x, longer(x)):
        (found,) = session.run(None, {"x": batch.numpy()})
        assert_same_numbers(torch.from_numpy(found), plain.eval()(batch))


def test_scripting_is_refused_by_a_clear_error():
    _, fused = pair(Net, min_channels=8)
    with pytest.raises(ModelError, match=r"use torch\.jit\.trace or torch\.export"):
        torch.jit.script(fused)


def test_function_transforms_compute_the_same():
    models = [model.eval() for model in pair(Net, min_channels=8)]
    x, direction = torch.randn(2, 2, 3, 9, 7, dtype=torch.float64)

    def transformed(model):
        def of_parameters(parameters):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        gradient = torch.func.grad(of_parameters)(dict(model.named_parameters()))
        derivative = torch.func.jvp(model, (x,), (direction,))[1]
        return gradient, derivative, torch.func.vmap(model)(torch.stack([x, direction]))

    expected, found = map(transformed, models)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_forward_mode_differentiation_computes_the_same():
    models = [model.eval() for model in pair(Net, min_channels=8)]
    x, direction = torch.randn(2, 2, 3, 9, 7, dtype=torch.float64)
    found = []
    for model in models:
        with torch.autograd.forward_ad.dual_level():
            y = model(torch.autograd.forward_ad.make_dual(x, direction))
            found.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_fake_tensors_the_meta_device_and_make_fx_see_plain_operations(backend):
    torch.manual_seed(0)
    model = Net().double().eval()
    apply_eca(model, min_channels=8)
    fuse_attention(model, backend)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(mode.from_tensor(x)).shape == (2, 5)
    graph = make_fx(model)(torch.randn_like(x))
    torch.testing.assert_close(graph(x), model(x), rtol=1e-12, atol=1e-12)
    assert model.to("meta")(x.to("meta")).shape == (2, 5)
