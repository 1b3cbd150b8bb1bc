"""Folded networks export to every format, as plain operations without norms."""

import onnx
import onnxruntime
import pytest
import torch
from torch import fx
from torch.export import Dim

from composer_attn.attention import EfficientChannelAttention
from composer_attn.functional import fold_norms
from tests.export.attended import assert_same_numbers
from tests.export.test_fused import network
from tests.surgeries import each_surgery

each_placement = pytest.mark.parametrize("placement", ["conv", "norm"])
SAMPLES = (3, 1, 8)


def folded(surgery, placement):
    """Return a folded network, and the numbers of the one that was folded, by batch size."""
    model = network(surgery, placement, fused=False).eval()
    batches = [torch.randn(samples, 3, 6, 5) for samples in SAMPLES]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
        return fold_norms(model), list(zip(batches, expected, strict=True))


@each_surgery
@each_placement
@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(surgery, placement, strict, tmp_path):
    model, examples = folded(surgery, placement)
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(model, (examples[0][0],), dynamic_shapes=shapes, strict=strict)
    assert set(program.state_dict) == set(model.state_dict())
    called = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert not any("norm" in each for each in called)
    assert sum("conv2d" in each for each in called) == 2
    if placement == "conv":
        assert sum("addcmul" in each for each in called) == 2
        # ECA is given what it squeezes divided by the norm's scale; SE's first layer takes that in.
        products = sum("aten.mul" in each for each in called)
        assert products == (2 if surgery.attention is EfficientChannelAttention else 0)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, expected in examples:
        assert_same_numbers(loaded(batch), expected)


@each_surgery
@each_placement
def test_torch_jit_trace(surgery, placement, tmp_path):
    model, examples = folded(surgery, placement)
    torch.jit.trace(model, examples[0][0]).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for batch, expected in examples:
        assert_same_numbers(loaded(batch), expected)


@each_surgery
@each_placement
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_onnx(surgery, placement, dynamo, tmp_path):
    model, examples = folded(surgery, placement)
    path, x = str(tmp_path / "model.onnx"), examples[0][0]
    if dynamo:
        shapes = ({0: Dim("batch")},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        axes = {"x": {0: "batch"}, "y": {0: "batch"}}
        names = {"input_names": ["x"], "output_names": ["y"]}
        torch.onnx.export(model, (x,), path, dynamo=False, dynamic_axes=axes, **names)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in kinds
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, expected in examples:
        (y,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        assert_same_numbers(torch.from_numpy(y), expected)


@each_surgery
@each_placement
def test_torch_fx(surgery, placement):
    model, examples = folded(surgery, placement)
    traced = fx.symbolic_trace(model)
    for batch, expected in examples:
        assert_same_numbers(traced(batch), expected)


@each_surgery
@each_placement
def test_torch_compile_makes_one_graph(surgery, placement):
    model, examples = folded(surgery, placement)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, expected in examples:
        assert_same_numbers(compiled(batch), expected)
