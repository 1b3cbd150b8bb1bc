"""Checkpoints of networks with built-in attention: find the matching surgery, export such files."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import CheckpointError, PlacementError
from composer_attn.functional.attention import plan_attention
from composer_attn.functional.attention_names import (
    describe,
    foreign_attention,
    in_names_of,
    is_inside,
)
from composer_attn.functional.files import save_safetensors
from composer_attn.functional.weights import read_weights
from composer_attn.surgery import SurgeryPlan, check_model

_PLACEMENT = "residual"  # as in these networks: at the end of each block's branch


@dataclass(frozen=True)
class FittingSurgery:
    """The surgery that gives a model the attention whose weights are in a file.

    Attributes:
        attention: the name of the attention.
        arguments: the further arguments of :func:`composer_attn.apply_attention`.
        plan: the plan of that surgery.
    """

    attention: str
    arguments: dict[str, Any]
    plan: SurgeryPlan


def plan_from_weights(model: nn.Module, path: str | os.PathLike) -> FittingSurgery:
    """Find the surgery that matches the attention in another package's checkpoint.

    Supported are the names used in timm's, ECA-Net's and Cadene's networks, which have attention at
    the end of each residual branch. The model is not changed.

    Args:
        model: the network without attention, such as torchvision's ResNet-50.
        path: the file, as for :func:`composer_attn.load_weights`.

    Returns:
        The attention, the arguments and the plan.

    Raises:
        CheckpointError: the file is unsafe or corrupt, contains no such attention, or its attention
            does not fit the model's residual blocks; the message describes it.
        ModelError: the model is attended already, or cannot be attended.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from composer_attn import apply_attention, load_weights, plan_from_weights
        >>> from torchvision.models.resnet import BasicBlock
        >>> model = nn.Sequential(BasicBlock(8, 8))
        >>> weights = model.state_dict() | {"0.eca.conv.weight": torch.rand(1, 1, 3)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(weights, f"{folder}/eca.pt")
        ...     found = plan_from_weights(model, f"{folder}/eca.pt")
        ...     plan = apply_attention(model, found.attention, **found.arguments)
        ...     load_weights(model, f"{folder}/eca.pt")
        ()
        >>> found.attention, found.arguments["kernel_size"]
        ('eca', {'0.bn2': 3})
    """
    check_model(model)
    weights = read_weights(model, path)
    state = model.state_dict()
    blocks = foreign_attention(name for name in weights if name not in state)
    if not blocks:
        raise CheckpointError(
            f"{path} holds no attention under a known name, such as "
            "layer1.0.se.fc1.weight or layer1.0.eca.conv.weight"
        )
    try:
        candidates = plan_attention(model, "eca", placement=_PLACEMENT, min_channels=1).chosen
    except PlacementError:  # the model has no residual blocks
        candidates = ()
    sites = {}
    for block, tensors in blocks.items():
        inside = [site for site in candidates if is_inside(site.name, block)]
        channels = len(weights[tensors["fc2.weight"]]) if "fc2.weight" in tensors else None
        if len(inside) != 1 or channels not in (None, inside[0].channels):
            raise CheckpointError(
                f"{path} holds {describe(blocks, weights)}, but the model has no residual block "
                f"{block!r} with these channels"
            )
        sites[inside[0].name] = tensors
    attention, own = _own_arguments(sites, weights)
    arguments = {"placement": _PLACEMENT, "min_channels": 1, "include": list(sites), **own}
    return FittingSurgery(attention, arguments, plan_attention(model, attention, **arguments))


def _own_arguments(
    sites: dict[str, dict[str, str]], weights: dict[str, Tensor]
) -> tuple[str, dict[str, Any]]:
    """Return the name of the attention with these layers, and its own arguments."""
    if all("conv.weight" in tensors for tensors in sites.values()):
        sizes = {site: weights[t["conv.weight"]].shape[-1] for site, t in sites.items()}
        return "eca", {"kernel_size": sizes}
    latents = {site: len(weights[t["fc1.weight"]]) for site, t in sites.items()}
    has_bias = all("fc1.bias" in tensors for tensors in sites.values())
    return "squeeze_excite", {"latent_channels": latents, "bias": has_bias}


def export_weights(model: nn.Module, path: str | os.PathLike, names: str = "timm") -> None:
    """Write a model's weights with the names that another package uses for attention.

    The file loads into that package's network of the same architecture. All other weights keep
    their names.

    Args:
        model: an attended network.
        path: the file to write: in safetensors format by that suffix, else by ``torch.save``.
        names: ``timm``, ``eca_net`` (the authors' code) or ``cadene``.

    Raises:
        ArgumentError: ``names`` is none of these or has no such attention, or a block of the model
            has several attentions.
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from composer_attn import apply_eca, export_weights
        >>> model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1)))
        >>> plan = apply_eca(model, min_channels=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_weights(model, f"{folder}/model.pt", names="timm")
        ...     list(torch.load(f"{folder}/model.pt"))
        ['0.0.weight', '0.0.bias', '0.se.conv.weight']
    """
    state = in_names_of(names, model.state_dict())
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if os.fspath(path).endswith(".safetensors"):
        save_safetensors(state, path)
    else:
        torch.save(state, path)
