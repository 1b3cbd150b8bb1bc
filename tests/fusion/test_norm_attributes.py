"""A fused norm uses the current values of its attributes, whenever they were set."""

import copy

import pytest
import torch
from torch import nn

from composer_attn.functional import apply_squeeze_excite, fuse_attention
from tests.ops.norms import SOME, changed

PLACEMENTS = ["conv", "norm"]


def network(placement: str) -> nn.Sequential:
    """Build a convolution, a norm and a ReLU, attended, with random numbers in the norm."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).double()
    apply_squeeze_excite(net, 3, 1, placement=placement)
    for value in (net[1].weight, net[1].bias, net[1].running_mean):
        nn.init.normal_(value)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    return net


def outcome(net: nn.Sequential, x: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
    """Train for a step; return the error, or output, gradients and buffers."""
    error, found = "", []
    net.zero_grad()
    try:
        y = net(x)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    else:
        (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
        found = [y.detach(), *(p.grad for p in net.parameters())]
    return error, [*found, *(value.clone() for value in net.buffers())]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("set_first", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_the_table_of_attributes_before_and_after_fusing(placement, training, set_first, backend):
    for row in SOME:
        plain = network(placement).train(training)
        fused = copy.deepcopy(plain)
        for net in (plain, fused):
            if net is fused and not set_first:
                assert fuse_attention(net, backend).fused
            changed(net[1], row)
        if set_first:
            assert fuse_attention(fused, backend).fused
        x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
        (error, expected), (found_error, found) = outcome(plain, x), outcome(fused, x)
        assert found_error == error, row
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_statistics_that_a_trainer_stops_tracking_stand_still(placement):
    """As consistency training does around its second forward."""
    net = network(placement)
    fuse_attention(net, "reference")
    before = copy.deepcopy(dict(net[1].named_buffers()))
    net[1].track_running_stats = False
    net(torch.randn(2, 3, 6, 5, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in net[1].named_buffers())
    net[1].track_running_stats = True
    net(torch.randn(2, 3, 6, 5, dtype=torch.float64))
    assert net[1].num_batches_tracked == 1
    assert not torch.equal(net[1].running_mean, before["running_mean"])
