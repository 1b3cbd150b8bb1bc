"""Which attention the zoos' networks have: what names tell in timm and torchvision, and no more."""

import inspect

import pytest
import timm
import torch
import torchvision

from composer_attn.surgery.existing_attention.known import (
    ATTENTIONS,
    RESCALING,
    existing,
    existing_attentions,
)

# What is attention, by its forward, and in no table of names: ESE-VoVNet's SE in HGNet.
FOUND_BESIDES = {"EseModule": "rescaling"}
# Networks of many kinds of attention, of none, and of what looks like it.
SOME = (
    "seresnet18", "ecaresnet26t", "gcresnet33ts", "skresnet18", "resnest14d", "hgnet_tiny",
    "mobilenetv3_small_050", "regnety_002", "ghostnetv2_100", "convnextv2_atto", "efficientvit_b0",
    "gcvit_xxtiny", "nf_resnet26", "mobilevit_xxs", "repvit_m1", "focalnet_tiny_srf",
)  # fmt: skip
SOME_OF_TORCHVISION = (
    "efficientnet_b0", "mobilenet_v3_small", "resnet18", "convnext_tiny", "shufflenet_v2_x0_5",
)  # fmt: skip


def by_name(module):
    names = {cls.__name__ for cls in type(module).__mro__}
    return "rescaling" if names & RESCALING else "fixed" if names & ATTENTIONS else "none"


def check(model):
    for name, module in model.named_modules():
        kind = type(module).__name__
        expected = FOUND_BESIDES.get(kind, by_name(module))
        assert existing(module).kind == expected, (name, kind)
    # Nor is anything else in them passed over: convolutions in a block's own forward.
    modules = {name for name, module in model.named_modules() if existing(module).kind != "none"}
    for name in existing_attentions(model):
        parts = name.split(".")
        assert any(".".join(parts[:i]) in modules for i in range(1, len(parts) + 1)), name


def of_torchvision(name):
    builder = torchvision.models.get_model_builder(name)
    takes = inspect.signature(builder).parameters
    plain = {"weights": None, "weights_backbone": None, "quantize": False}
    return builder(**{key: value for key, value in plain.items() if key in takes})


def without_memory(build, name):
    """Build a network on the meta device, or, where its builder computes with tensors, whole."""
    try:
        with torch.device("meta"):
            return build(name)
    except NotImplementedError:
        return build(name)


@pytest.mark.parametrize("name", SOME)
def test_networks_of_timm(name):
    check(without_memory(timm.create_model, name))


@pytest.mark.parametrize("name", SOME_OF_TORCHVISION)
def test_networks_of_torchvision(name):
    check(without_memory(of_torchvision, name))


# The networks of a module are built from the same classes: the first stands for all.
FAMILIES = {timm.list_models(module=module)[0] for module in timm.list_modules()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES - set(SOME)))
def test_every_family_of_timm(name):
    check(without_memory(timm.create_model, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(set(torchvision.models.list_models()) - set(SOME_OF_TORCHVISION))
)
def test_every_network_of_torchvision(name):
    check(without_memory(of_torchvision, name))


def test_something_is_known_in_these():
    known = {existing(m).kind for m in timm.create_model("seresnet18").modules()}
    assert known == {"none", "rescaling"}
