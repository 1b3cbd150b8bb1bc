import torch
from torch.export import Dim

from tests.export.attended import assert_same_numbers, attended, each_gate, longer
from tests.networks import NETWORKS
from tests.surgeries import each_network, each_surgery


@each_surgery
@each_network
def test_a_program_of_fixed_shape_computes_the_same(surgery, network):
    model, x = attended(network, surgery), network.batch()
    program = torch.export.export(model, (x,))
    assert_same_numbers(program.module()(x), model(x))
    assert set(program.state_dict) == set(model.state_dict())


@each_surgery
@each_network
def test_a_program_of_dynamic_batch_takes_other_batches(surgery, network, tmp_path):
    model, x = attended(network, surgery), network.batch()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (x, longer(x)):
        assert_same_numbers(loaded(batch), model(batch))


@each_surgery
def test_a_program_of_dynamic_height_and_width_takes_other_images(surgery):
    network = NETWORKS["inverted_residual"]
    model = attended(network, surgery)
    shapes = {0: Dim("batch"), 2: Dim("height", min=4), 3: Dim("width", min=4)}
    program = torch.export.export(model, (network.batch(),), dynamic_shapes=(shapes,)).module()
    x = torch.randn(3, 3, 12, 7)
    assert_same_numbers(program(x), model(x))


@each_surgery
@each_gate
def test_every_gate_can_be_exported(surgery, gate, start):
    network = NETWORKS["residual"]
    model, x = attended(network, surgery, gate=gate, start=start), network.batch()
    assert_same_numbers(torch.export.export(model, (x,)).module()(x), model(x))
