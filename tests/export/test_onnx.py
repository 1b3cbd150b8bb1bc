import onnxruntime
import pytest
import torch
from torch.export import Dim

from tests.export.attended import assert_same_numbers, attended, each_gate, longer
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery


def export(model, x, path, dynamic=False, **options):
    names = {"input_names": ["x"], "output_names": ["y"]}
    axes = {"dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}} if dynamic else {}
    torch.onnx.export(model, (x,), str(path), dynamo=False, **names, **axes, **options)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, x):
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


@each_surgery
@each_network
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_onnxruntime_computes_the_same(surgery, network, tmp_path):
    model, x = attended(network, surgery), network.batch()
    session = export(model, x, tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == list(x.shape)
    assert_same_numbers(run(session, x), model(x))


@each_surgery
@each_network
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_onnxruntime_takes_other_batches_where_they_are_dynamic(surgery, network, tmp_path):
    model, x = attended(network, surgery), network.batch()
    session = export(model, x, tmp_path / "model.onnx", dynamic=True)
    assert session.get_inputs()[0].shape == ["batch", *x.shape[1:]]
    for batch in (x, longer(x)):
        assert_same_numbers(run(session, batch), model(batch))


@each_surgery
@each_gate
def test_onnxruntime_supports_every_gate(surgery, gate, start, tmp_path):
    network = NETWORKS["residual"]
    model, x = attended(network, surgery, gate=gate, start=start), network.batch()
    assert_same_numbers(run(export(model, x, tmp_path / "model.onnx"), x), model(x))


@each_surgery
@pytest.mark.parametrize("name", ["root", "signal", "volume", "residual", "resnet"])
def test_the_exporter_by_torch_export_gives_the_same(surgery, name, tmp_path):
    network = NETWORKS[name]
    model, x = attended(network, surgery), network.batch()
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (x,),
        str(path),
        dynamo=True,
        dynamic_shapes=({0: Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (x, longer(x)):
        assert_same_numbers(run(session, batch), model(batch))
