import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from composer_attn.errors import NothingAttendedWarning
from composer_attn.functional import attended_modules, detach_attention
from tests.families.torchvision_networks import (
    DEFAULT_MEMBERS,
    FAMILIES,
    MEMBERS,
    MIN_CHANNELS,
    build,
    family_of,
    images,
    parametrized,
    train_without_chance,
)
from tests.surgeries import attention_keys, each_surgery

every_network = pytest.mark.parametrize("name", parametrized())


def wide_convolutions(network: nn.Module) -> set[str]:
    """Count the sites that a surgery should attend."""
    own = [n for n, m in network.named_modules() if isinstance(m, SqueezeExcitation)]
    return {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.out_channels >= MIN_CHANNELS
        and not any(name.startswith(f"{prefix}.") for prefix in own)
    }


def test_every_family_that_torchvision_lists_has_a_member_in_the_default_suite():
    assert {family_of(name) for name in MEMBERS} == set(FAMILIES)
    assert {family_of(name) for name in DEFAULT_MEMBERS} == set(FAMILIES)
    assert set(MEMBERS) >= DEFAULT_MEMBERS


@every_network
@each_surgery
def test_all_wide_convolutions_outside_own_attention_are_attended(name, surgery):
    network = build(name)
    expected = wide_convolutions(network)
    assert expected
    surgery.applying(network, min_channels=MIN_CHANNELS)
    assert set(attended_modules(network)) == expected


@every_network
@each_surgery
def test_plain_weights_load_into_the_attended_network(name, surgery):
    torch.manual_seed(1)
    plain = build(name).state_dict()
    network = build(name)
    surgery.applying(network, min_channels=MIN_CHANNELS)
    missing, unexpected = network.load_state_dict(plain, strict=False)
    assert unexpected == []
    loaded = network.state_dict()
    assert set(missing) == attention_keys(loaded) != set()
    assert all(torch.equal(loaded[key], value) for key, value in plain.items())


@every_network
@each_surgery
def test_gradients_reach_every_parameter_of_every_attention(name, surgery):
    network = build(name)
    surgery.applying(network, min_channels=MIN_CHANNELS)
    outputs = train_without_chance(network)(images(name))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for site, attention in attended_modules(network).items():
        for parameter in attention.parameters():
            assert parameter.grad.isfinite().all(), site
            assert parameter.grad.any(), site


@every_network
@each_surgery
@torch.no_grad()
def test_detaching_gives_back_keys_and_outputs_bit_for_bit(name, surgery):
    network = build(name).eval()
    x = images(name)
    before, keys = network(x), list(network.state_dict())
    surgery.applying(network, min_channels=MIN_CHANNELS)
    attended = network(x)
    assert attended.isfinite().all()
    assert not torch.equal(attended, before)
    detach_attention(network)
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), before)


@each_surgery
@pytest.mark.parametrize(
    ("name", "site", "channels"),
    [("vit_b_32", "conv_proj", 768), ("swin_t", "features.0.0", 96)],
)
def test_transformers_have_their_patch_embedding_to_attend_and_nothing_else(
    surgery, name, site, channels
):
    network = build(name)
    (only,) = surgery.planning(network, min_channels=MIN_CHANNELS).sites
    assert (only.name, only.channels, only.chosen) == (site, channels, True)
    with pytest.warns(NothingAttendedWarning, match="fewer channels than min_channels=1000"):
        surgery.applying(network, min_channels=1000)
    assert attended_modules(network) == {}
