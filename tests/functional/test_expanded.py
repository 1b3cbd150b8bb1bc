"""Copies in which every layer has its plain type: the same outputs, counted as they should be."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from composer_attn import (
    apply_eca,
    apply_squeeze_excite,
    attended_modules,
    expanded_copy,
    fuse_attention,
)
from composer_attn.attention import ChannelAttention
from composer_attn.errors import ArgumentError, ModelError
from tests import snapshots
from tests.networks import NETWORKS
from tests.surgeries import each_surgery

IMAGES = (2, 3, 32, 32)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return x + y


def network() -> nn.Sequential:
    """Norms with statistics and weights of their own."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), Block(), Block(), nn.Conv2d(16, 16, 1)
    )
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def macs_by_exact_type(model: nn.Module, x: torch.Tensor) -> int:
    """Count as thop and similar tools do: by hooks on modules whose exact type is in a table."""
    found = []

    def convolution(module, _, output):
        found.append(output.numel() * module.weight[0].numel())

    def linear(module, _, output):
        found.append(output.numel() * module.in_features)

    table = dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution) | {nn.Linear: linear}
    hooks = [
        module.register_forward_hook(table[type(module)])
        for module in model.modules()
        if type(module) in table
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return sum(found)


def macs(model: nn.Module, x: torch.Tensor) -> int:
    """Count by torch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


@each_surgery
@pytest.mark.parametrize("placement", ["conv", "norm", "residual", "pre", "post", "identity"])
@pytest.mark.parametrize("fused", [False, True])
def test_it_computes_the_same_and_is_counted_right(surgery, placement, fused):
    model, x = network(), torch.randn(IMAGES)
    plain = macs_by_exact_type(model, x)
    assert plain == macs(model, x)
    surgery.apply(model, placement=placement, min_channels=8)
    expected, attended = model(x), macs(model, x)
    if fused:
        fuse_attention(model, backend="reference")
    found = expanded_copy(model)
    torch.testing.assert_close(found(x), expected, rtol=0, atol=0)
    assert macs_by_exact_type(found, x) == attended > plain
    # What the helper is for: an attended layer is none that such a counter knows.
    cheap = macs_by_exact_type(model, x)
    assert (cheap < plain / 10) == (placement == "conv")
    kinds = {type(module) for module in found.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {nn.Conv2d}
    assert attended_modules(found) == {}


@each_surgery
def test_the_network_itself_is_unchanged(surgery):
    model = network()
    surgery.apply(model, min_channels=8)
    fuse_attention(model, backend="reference")
    before = snapshots.of_model(model)
    found = expanded_copy(model)
    assert snapshots.of_model(model) == before
    own = {p.data_ptr() for p in model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in found.parameters())
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("arguments", [{}, {"squeeze": "none"}, {"squeeze": "max"}], ids=str)
def test_other_networks_too(name, arguments):
    model = NETWORKS[name].build().eval()
    apply_eca(model, min_channels=8, **arguments)
    x = NETWORKS[name].batch()
    torch.testing.assert_close(expanded_copy(model)(x), model(x), rtol=0, atol=0)


def test_it_trains_alike_and_keeps_the_modes():
    model, x = network(), torch.randn(IMAGES)
    apply_squeeze_excite(model, min_channels=8, start="identity")
    model.train()
    model[0].eval()
    found = expanded_copy(model)
    assert [m.training for m in found.modules() if isinstance(m, nn.Conv2d)] == [
        m.training for m in model.modules() if isinstance(m, nn.Conv2d)
    ]
    for each in (model, found):
        each(x).square().sum().backward()
    gradients = [sorted(p.grad.norm().item() for p in m.parameters()) for m in (model, found)]
    torch.testing.assert_close(*map(torch.tensor, gradients))


def test_a_module_of_several_names_stays_one():
    conv = nn.Conv2d(8, 8, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    apply_eca(model, min_channels=8)
    found = expanded_copy(model)
    assert found[0] is found[2]
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(found(x), model(x))
    assert macs_by_exact_type(found, x) == macs(model, x)


def test_the_model_itself_may_be_the_site():
    model = nn.Conv2d(3, 8, 3)
    apply_eca(model, min_channels=8)
    x = torch.randn(IMAGES)
    found = expanded_copy(model)
    assert torch.equal(found(x), model(x))
    assert macs_by_exact_type(found, x) == macs(model, x)


def test_a_forward_may_read_the_attributes_of_a_layer():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, stride=2)

        def forward(self, x):
            return self.conv(x[..., : self.conv.stride[0] * 8, :]) / self.conv.weight.norm()

    model = Padded()
    apply_eca(model, min_channels=8)
    x = torch.randn(IMAGES)
    found = expanded_copy(model)
    assert torch.equal(found(x), model(x))
    with pytest.raises(AttributeError, match="no attribute 'strides'"):
        _ = found.conv.strides


def test_a_network_without_attention_is_copied():
    model, x = network(), torch.randn(IMAGES)
    found = expanded_copy(model)
    assert found is not model
    assert torch.equal(found(x), model(x))


def test_a_network_whose_own_attention_was_replaced():
    class SELayer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x):
            scales = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()
            return x * scales[..., None, None]

    model = nn.Sequential(nn.Conv2d(3, 8, 3), SELayer())
    apply_eca(model, replace=True)
    x = torch.randn(IMAGES)
    found = expanded_copy(model)
    assert torch.equal(found(x), model(x))
    assert macs_by_exact_type(found, x) == macs(model, x)
    assert any(isinstance(module, ChannelAttention) for module in found.modules())


def test_what_cannot_be_spread_is_refused():
    model = network()
    apply_eca(model, min_channels=8)
    parametrize.register_parametrization(model[0], "weight", nn.Identity())
    with pytest.raises(ModelError, match="the class of 0 was extended after the surgery"):
        expanded_copy(model)
    with pytest.raises(ModelError, match="compile"):
        expanded_copy(torch.compile(network(), backend="eager"))
    with pytest.raises(ArgumentError, match="model must be a"):
        expanded_copy("resnet18")
