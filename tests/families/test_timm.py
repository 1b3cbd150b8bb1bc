"""Networks of timm's: attention of ours goes beside their own, never inside."""

import copy
import re

import pytest
import timm
import torch
from torch import nn

from composer_attn.functional import attended_modules, detach_attention
from tests.surgeries import each_surgery

# (network, names of convolutions inside its own attentions, how many those are). The last three
# networks have none: no name matches.
NETWORKS = {
    "seresnet18": (r"layer\d\.\d\.se\.", 16),
    "ecaresnet26t": (r"layer\d\.\d\.se\.", 8),
    "efficientnet_b0": (r"blocks\.\d\.\d\.se\.", 32),
    "regnety_002": (r"s\d\.b\d+\.se\.", 26),
    "mobilenetv3_small_050": (r"blocks\.\d\.\d\.se\.", 18),
    "skresnet18": (r"layer\d\.\d\.conv1\.(paths|attn)\.", 32),
    "resnest14d": (r"layer\d\.\d\.conv2\.", 12),
    "gcresnet33ts": (r"stages\.\d\.\d\.attn\.", 30),
    "ese_vovnet19b_dw": (r"stages\.\d\.blocks\.\d\.attn\.", 4),
    "eca_nfnet_l0": (r"stages\.\d\.\d\.attn_last\.", 12),
    "cspresnet50": (r"(?!)", 0),
    "convnext_atto": (r"(?!)", 0),
    "hrnet_w18_small": (r"(?!)", 0),
}
each_network = pytest.mark.parametrize(
    ("name", "own", "count"), [(n, *row) for n, row in NETWORKS.items()], ids=NETWORKS
)


def build(name):
    """Build a network none of whose branches is switched off by a factor of zero, as timm's are."""
    network = timm.create_model(name, pretrained=False)
    for parameter_name, parameter in network.named_parameters():
        if not parameter_name.endswith("bias") and not parameter.any():
            nn.init.ones_(parameter)
    return network


@each_surgery
@each_network
def test_convolutions_inside_own_attentions_are_passed_over_and_no_others(
    surgery, name, own, count
):
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False)
    plan = surgery.planning(network, min_channels=1)
    inside = {site.name for site in plan.sites if re.match(own, site.name)}
    assert len(inside) == count
    assert {site.name for site in plan.passed_over} == inside
    assert all(site.reason.startswith("inside ") for site in plan.passed_over)
    assert len(plan.chosen) > 10


@each_surgery
@pytest.mark.parametrize("name", NETWORKS)
def test_attended_beside_own_attention_they_train_and_are_given_back(surgery, name):
    network = build(name).eval()
    plain = copy.deepcopy(network)
    x = torch.randn(3, 3, 32, 32)
    surgery.applying(network, min_channels=32)
    assert not torch.equal(network(x), plain(x))

    output = network.train()(x)
    (output * torch.randn_like(output)).sum().backward()
    for site, attention in attended_modules(network).items():
        assert all(p.grad.isfinite().all() and p.grad.any() for p in attention.parameters()), site

    detach_attention(network.eval())
    plain.load_state_dict(network.state_dict())  # batch norm has seen a batch
    assert torch.equal(network(x), plain(x))
