"""Fused networks export to every format, and compute the same as unfused ones."""

import copy

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from composer_attn.functional import fuse_attention
from tests.export.attended import assert_same_numbers
from tests.surgeries import each_surgery

each_placement = pytest.mark.parametrize("placement", ["conv", "norm"])
either_mode = pytest.mark.parametrize("training", [True, False])
either_way = pytest.mark.parametrize("strict", [True, False])


class Residual(nn.Module):
    """Norms, a ReLU in place, an addition and a ReLU after it."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + y)
        return self.head(y.mean((2, 3)))


def network(surgery, placement: str, fused: bool = True) -> nn.Module:
    model = Residual()
    surgery.apply(model, placement=placement)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2)
        elif value.is_floating_point() and ("bn" in name or "attention" in name):
            nn.init.normal_(value)
    if fused:
        assert len(fuse_attention(model).fused) == 2
    return model


@each_surgery
@each_placement
@either_mode
@either_way
@pytest.mark.parametrize("fused", [True, False])
def test_a_program_of_any_batch(surgery, placement, training, strict, fused):
    model = network(surgery, placement, fused).train(training)
    x = torch.randn(3, 3, 6, 5)
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=strict)
    for samples in (3, 1, 2, 17):
        batch = torch.randn(samples, 3, 6, 5)
        # Either counts batches and moves statistics of its own.
        found, expected = program.module()(batch), copy.deepcopy(model)(batch)
        assert_same_numbers(found, expected)


@each_surgery
@each_placement
def test_a_program_moves_the_statistics_that_the_network_moves(surgery, placement):
    model = network(surgery, placement)
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(
        model, (torch.randn(3, 3, 6, 5),), dynamic_shapes=shapes, strict=False
    ).module()
    for _ in range(2):
        batch = torch.randn(4, 3, 6, 5)
        assert_same_numbers(program(batch), model(batch))
    found = dict(program.named_buffers())
    for name, value in model.named_buffers():
        torch.testing.assert_close(found[name], value)


@each_surgery
@each_placement
def test_an_exported_graph_has_the_batch_norms_that_others_look_for(surgery, placement):
    model = network(surgery, placement).eval()
    program = torch.export.export(model, (torch.randn(3, 3, 6, 5),), strict=False)
    assert sum("batch_norm" in str(node.target) for node in program.graph.nodes) == 2


@each_surgery
@each_placement
@pytest.mark.parametrize("dynamic", [True, False])
def test_onnx_by_way_of_torch_export(surgery, placement, dynamic, tmp_path):
    model, x = network(surgery, placement).eval(), torch.randn(3, 3, 6, 5)
    path = tmp_path / "model.onnx"
    shapes = ({0: Dim("batch")},) if dynamic else None
    torch.onnx.export(model, (x,), str(path), dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (x, torch.randn(7, 3, 6, 5)) if dynamic else (x,):
        (y,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        assert_same_numbers(torch.from_numpy(y), model(batch))
