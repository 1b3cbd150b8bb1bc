import copy
from dataclasses import dataclass

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

every_network = pytest.mark.parametrize("network", parametrized(), indirect=True)


@dataclass(frozen=True)
class Plain:
    """A network, images, and its weights and outputs for them as long as it had no attention."""

    model: nn.Module
    x: torch.Tensor
    state: dict[str, torch.Tensor]
    outputs: torch.Tensor


@pytest.fixture(scope="module")
def network(request):
    """Build a network once for all surgeries; each test leaves it as it found it."""
    torch.manual_seed(0)
    model, x = build(request.param).eval(), images(request.param)
    with torch.no_grad():
        outputs = model(x)
    return Plain(model, x, copy.deepcopy(model.state_dict()), outputs)


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
def test_it_is_attended_trains_loads_plain_weights_and_is_given_back(network, surgery):
    expected = wide_convolutions(network.model)
    assert expected
    surgery.applying(network.model, min_channels=MIN_CHANNELS)
    assert set(attended_modules(network.model)) == expected
    assert_outputs_change(network)
    assert_gradients_reach_every_attention(network)
    assert_plain_weights_load(network)
    assert_detaching_gives_back_keys_and_outputs_bit_for_bit(network)


@torch.no_grad()
def assert_outputs_change(network: Plain) -> None:
    attended = network.model.eval()(network.x)
    assert attended.isfinite().all()
    assert not torch.equal(attended, network.outputs)


def assert_gradients_reach_every_attention(network: Plain) -> None:
    outputs = train_without_chance(network.model)(network.x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((output * torch.randn_like(output)).sum() for output in outputs)
    attentions = attended_modules(network.model)
    parameters = {f"{n}.{p}": q for n, m in attentions.items() for p, q in m.named_parameters()}
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.any(), name


@torch.no_grad()
def assert_plain_weights_load(network: Plain) -> None:
    """Load them over others; afterwards the network's own are those of before."""
    for key, value in network.model.state_dict().items():
        if key in network.state:
            value.zero_() if value.any() else value.fill_(1)
    missing, unexpected = network.model.load_state_dict(network.state, strict=False)
    assert unexpected == []
    loaded = network.model.state_dict()
    assert set(missing) == attention_keys(loaded) != set()
    assert all(torch.equal(loaded[key], value) for key, value in network.state.items())


@torch.no_grad()
def assert_detaching_gives_back_keys_and_outputs_bit_for_bit(network: Plain) -> None:
    detach_attention(network.model)
    assert attended_modules(network.model) == {}
    assert list(network.model.state_dict()) == list(network.state)
    assert torch.equal(network.model.eval()(network.x), network.outputs)


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
