import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from composer_attn.functional import attended_modules
from tests.export.attended import attended, each_gate, longer
from tests.networks import MIN_CHANNELS, NETWORKS
from tests.surgeries import each_network, each_surgery

pytestmark = pytest.mark.filterwarnings("error")


class OwnConvolution(nn.Conv2d):
    """Not a class of torch.nn, hence traced through."""

    def forward(self, x):
        return super().forward(x.relu())


def trace(model: nn.Module) -> torch.fx.GraphModule:
    message = ""
    try:
        return torch.fx.symbolic_trace(model)
    except torch.fx.proxy.TraceError as error:
        message = str(error)
    # Outside the handler: torch.fx patches code that has no line numbers, and pytest ends its whole
    # run on a traceback through it.
    return pytest.fail(message, pytrace=False)


@each_surgery
@each_network
def test_a_symbolic_trace_computes_the_same(surgery, network):
    model, x = attended(network, surgery), network.batch()
    traced = trace(model)
    for batch in (x, longer(x)):
        assert torch.equal(traced(batch), model(batch))


@each_surgery
@each_gate
def test_a_symbolic_trace_through_an_attention_computes_the_same(surgery, gate, start):
    model = nn.Sequential(OwnConvolution(3, MIN_CHANNELS, 3))
    surgery.apply(model, gate=gate, start=start)
    nn.init.normal_(model[0].attention.last_layer.weight)
    traced, x = trace(model), torch.randn(2, 3, 8, 8)
    assert "squeeze_channels" in traced.code
    assert torch.equal(traced(x), model(x))


@each_surgery
def test_a_trace_shares_the_parameters_and_trains_them(surgery):
    model, x = attended(NETWORKS["resnet"], surgery), NETWORKS["resnet"].batch()
    trace(model)(x).sum().backward()
    for attention in attended_modules(model).values():
        assert all(parameter.grad.any() for parameter in attention.parameters())


@each_surgery
def test_features_of_a_site_are_its_attended_output(surgery):
    model, x = attended(NETWORKS["resnet"], surgery), NETWORKS["resnet"].batch()
    site, seen = model.layer2[0].conv1, []
    hook = site.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(x)
    hook.remove()
    features = create_feature_extractor(model, ["layer2.0.conv1", "fc"])(x)
    assert torch.equal(features["layer2.0.conv1"], seen[0])
    assert torch.equal(features["fc"], logits)
