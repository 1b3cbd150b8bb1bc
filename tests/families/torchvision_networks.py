"""Every classification network in torchvision, by family, at a size that is cheap to run.

A family is the module of ``torchvision.models`` that its builders come from.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

# Low enough for the narrowest patch embedding (Swin, 96), and for some sites in every network.
MIN_CHANNELS = 64


@dataclass(frozen=True)
class Family:
    """A family: the member in the default suite, an image side that all members accept."""

    member: str
    side: int = 32
    arguments: dict = field(default_factory=dict)


# The sizes other than 32 are minimal: AlexNet's last pooling, Inception's auxiliary head (a 5x5
# convolution behind a pooling), MaxViT's windows.
FAMILIES = {
    "alexnet": Family("alexnet", 63),
    "convnext": Family("convnext_tiny"),
    "densenet": Family("densenet121"),
    "efficientnet": Family("efficientnet_b0"),
    "googlenet": Family("googlenet", arguments={"init_weights": False}),
    "inception": Family("inception_v3", 299, arguments={"init_weights": False}),
    "maxvit": Family("maxvit_t", 224),
    "mnasnet": Family("mnasnet0_5"),
    "mobilenetv2": Family("mobilenet_v2"),
    "mobilenetv3": Family("mobilenet_v3_small"),
    "regnet": Family("regnet_x_400mf"),
    "resnet": Family("resnet18"),
    "shufflenetv2": Family("shufflenet_v2_x0_5"),
    "squeezenet": Family("squeezenet1_1"),
    "swin_transformer": Family("swin_t"),
    "vgg": Family("vgg11"),
    "vision_transformer": Family("vit_b_32"),
}

MEMBERS = tuple(models.list_models(module=models))
DEFAULT_MEMBERS = {family.member for family in FAMILIES.values()}


def parametrized():
    """Every network as a pytest parameter; all but one of each family are slow."""
    return [
        pytest.param(name, marks=() if name in DEFAULT_MEMBERS else pytest.mark.slow)
        for name in MEMBERS
    ]


def family_of(name: str) -> str:
    return models.get_model_builder(name).__module__.rpartition(".")[2]


def image_side(name: str) -> int:
    if family_of(name) == "vision_transformer":
        return 2 * int(name.rpartition("_")[2])  # two patches a side
    return FAMILIES[family_of(name)].side


def images(name: str) -> torch.Tensor:
    # Three: batch norm over one position a channel has no gradient from two samples.
    return torch.randn(3, 3, image_side(name), image_side(name))


def build(name: str) -> nn.Module:
    """Build a network with random weights, all of whose outputs depend on all of its layers."""
    family = family_of(name)
    arguments = dict(FAMILIES[family].arguments)
    if family == "vision_transformer":
        arguments["image_size"] = image_side(name)
    network = models.get_model(name, weights=None, **arguments)
    if family == "vision_transformer":
        nn.init.normal_(network.heads.head.weight)  # torchvision zeroes it
    return network


def train_without_chance(network: nn.Module) -> nn.Module:
    """Training mode, except that no branch and no activation is dropped."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.eval()
    return network
