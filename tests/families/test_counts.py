import pytest
import torch
from torchvision import models

from composer_attn.functional import apply_eca, apply_squeeze_excite, attended_modules

# (network, sites, parameters of the whole attended network) for 1000 classes, with Squeeze-and-
# Excitation of 64 latent channels, without biases, after every convolution that has at least 128
# output channels and is in no attention of the network's own. GoogLeNet and Inception come, as
# torchvision builds them, with the auxiliary heads that they are trained with.
SQUEEZE_EXCITE = [
    ("resnet50", 46, 28_899_368),
    ("resnext50_32x4d", 52, 29_387_048),
    ("vgg16", 11, 138_881_832),
    ("googlenet", 31, 13_766_744),
    ("inception_v3", 68, 29_233_840),
    ("densenet121", 61, 9_043_816),
    ("mobilenet_v2", 35, 5_565_160),
    ("mobilenet_v3_large", 22, 6_832_664),
    ("regnet_y_400mf", 38, 5_920_080),
    ("efficientnet_b0", 34, 7_852_644),
]

# What torchvision's pages say of the networks as they come.
PLAIN = {"resnet50": 25_557_032, "efficientnet_b0": 5_288_548}


def build(name):
    arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # RegNet computes its widths with tensors, which have no values on the meta device.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return models.get_model(name, weights=None, **arguments)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "sites", "parameters"), SQUEEZE_EXCITE)
def test_squeeze_excite_brings_a_network_to_its_known_size(name, sites, parameters):
    network = build(name)
    plain = count(network)
    plan = apply_squeeze_excite(network, latent_channels=64, min_channels=128)
    assert len(plan.chosen) == len(attended_modules(network)) == sites
    assert count(network) == plain + plan.parameters == parameters
    assert PLAIN.get(name, plain) == plain


def test_eca_adds_238_parameters_to_resnet_50():
    network = build("resnet50")
    plan = apply_eca(network)
    assert len(plan.chosen) == 46
    assert count(network) == 25_557_270
    assert plan.parameters == 238
    assert sorted({a.kernel_size for a in attended_modules(network).values()}) == [5, 7]
