"""Checkpoints of networks with attention built in, into ours and back."""

import pytest
import safetensors.torch
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torchvision import models

from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.functional import (
    apply_attention,
    apply_eca,
    apply_squeeze_excite,
    export_weights,
    load_weights,
    plan_from_weights,
)

KINDS = ("se", "eca")


def theirs(kind: str) -> nn.Module:
    """Build timm's ResNet-18 with attention, random everywhere, statistics included."""
    torch.manual_seed(3)
    network = ResNet(BasicBlock, (2, 2, 2, 2), num_classes=5, block_args={"attn_layer": kind})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network.double().eval()


def ours() -> nn.Module:
    return models.resnet18(num_classes=5).double().eval()


def differ(first: nn.Module, second: nn.Module) -> float:
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        return float((first(x) - second(x)).abs().max())


def renamed(state: dict, package: str) -> dict:
    """Rename timm's attention to what other packages call it."""
    child = {"timm": "se", "eca_net": "eca", "cadene": "se_module"}[package]
    return {name.replace(".se.", f".{child}."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("kind", "package", "prefix"),
    [
        ("se", "timm", ""),
        ("se", "cadene", "module."),
        ("eca", "timm", "module."),
        ("eca", "eca_net", "module."),
    ],
)
def test_what_a_package_has_trained_computes_the_same_in_ours(kind, package, prefix, tmp_path):
    network, model = theirs(kind), ours()
    state = renamed(network.state_dict(), package)
    torch.save({"state_dict": {f"{prefix}{n}": t for n, t in state.items()}}, tmp_path / "net.pth")
    found = plan_from_weights(model, tmp_path / "net.pth")
    assert len(found.plan.chosen) == 8
    plan = apply_attention(model, found.attention, **found.arguments)
    assert plan == found.plan
    assert load_weights(model, tmp_path / "net.pth") == ()
    assert differ(model, network) < 1e-10


def eighth(channels: int, **options) -> nn.Module:
    return timm.layers.SqueezeExcite(channels, rd_channels=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_exported_computes_the_same_at_timm(kind, suffix, tmp_path):
    model, network = ours(), theirs(kind)
    if kind == "se":
        apply_squeeze_excite(model, latent_channels=8, min_channels=1, placement="residual")
        network = ResNet(
            BasicBlock, (2, 2, 2, 2), num_classes=5,
            block_args={"attn_layer": eighth},
        ).double().eval()  # fmt: skip
    else:
        apply_eca(model, min_channels=1, placement="residual")
    file = tmp_path / f"net.{suffix}"
    export_weights(model, file, names="timm")
    read = safetensors.torch.load_file if suffix == "safetensors" else torch.load
    network.load_state_dict(read(file))
    assert differ(model, network) < 1e-10


def test_there_and_back_is_bit_for_bit(tmp_path):
    model = ours()
    apply_eca(model, min_channels=1, placement="residual")
    export_weights(model, tmp_path / "net.pth", names="eca_net")
    assert "layer1.0.eca.conv.weight" in torch.load(tmp_path / "net.pth")
    again = ours()
    apply_eca(again, min_channels=1, placement="residual")
    load_weights(again, tmp_path / "net.pth")
    state, expected = again.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layers", [("fc.0", "fc.2"), ("fc1", "fc2")])
def test_linear_layers_without_biases_load_as_well(layers, tmp_path):
    model = ours()
    state = model.state_dict()
    latent = {}
    for name, tensor in ours().state_dict().items():
        if name.endswith("bn2.weight"):
            block, channels = name.removesuffix(".bn2.weight"), len(tensor)
            latent[block] = torch.randn(channels // 16, channels, dtype=torch.float64)
            state[f"{block}.se.{layers[0]}.weight"] = latent[block]
            state[f"{block}.se.{layers[1]}.weight"] = latent[block].t().contiguous()
    torch.save(state, tmp_path / "net.pth")
    found = plan_from_weights(model, tmp_path / "net.pth")
    assert found.attention == "squeeze_excite"
    assert found.arguments["bias"] is False
    assert found.arguments["latent_channels"]["layer4.1.bn2"] == 32
    apply_attention(model, found.attention, **found.arguments)
    load_weights(model, tmp_path / "net.pth")
    assert torch.equal(model.layer4[1].bn2.attention.fc1.weight, latent["layer4.1"])


def apply_smaller_kernels(model):
    apply_eca(model, min_channels=1, placement="residual", kernel_size=3)


def apply_elsewhere(model):
    apply_eca(model, min_channels=1, placement="conv")


def apply_another(model):
    apply_squeeze_excite(model, min_channels=1, placement="residual")


@pytest.mark.parametrize(
    ("attend", "here"),
    [
        (lambda model: None, "attends nothing"),
        (apply_smaller_kernels, "attends layer3.0.bn2|attends layer1.0.bn2|attends layer2.0.bn2"),
        (apply_elsewhere, "attends layer1.0.conv1, layer1.0.conv2"),
        (apply_another, "attends layer1.0.bn2"),
    ],
)
def test_attention_that_does_not_match_the_file_is_an_error_and_nothing_changes(
    attend, here, tmp_path
):
    torch.save(theirs("eca").state_dict(), tmp_path / "net.pth")
    model = ours()
    attend(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"holds ECA in 8 blocks \(kernel sizes 3, 5\)"
    ) as error:
        load_weights(model, tmp_path / "net.pth")
    assert any(text in str(error.value) for text in here.split("|"))
    assert "plan_from_weights(model, path) finds a surgery that matches" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files_without_attention_and_networks_without_its_blocks(tmp_path):
    model = ours()
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="holds no attention under a known name"):
        plan_from_weights(model, tmp_path / "plain.pth")
    torch.save(theirs("se").state_dict(), tmp_path / "se.pth")
    with pytest.raises(
        CheckpointError, match=r"holds SE in 8 blocks .* no residual block 'layer1.0'"
    ):
        plan_from_weights(models.vgg11(), tmp_path / "se.pth")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("tensorflow", "names must be one of cadene, eca_net, timm; got 'tensorflow'"),
        ("cadene", "cadene has no name for layer1.0.bn2.attention.conv.weight"),
    ],
)
def test_names_that_are_not_there(names, says, tmp_path):
    model = ours()
    apply_eca(model, min_channels=1, placement="residual")
    with pytest.raises(ArgumentError, match=says):
        export_weights(model, tmp_path / "net.pth", names=names)
    assert list(tmp_path.iterdir()) == []


def test_two_attentions_in_a_block_have_no_name_elsewhere(tmp_path):
    model = ours()
    apply_eca(model, min_channels=1)
    with pytest.raises(ArgumentError, match=r"layer1.0.conv1 and layer1.0.conv2 are both attended"):
        export_weights(model, tmp_path / "net.pth")
