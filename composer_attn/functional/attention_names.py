"""Attention weights under the names of other packages, whose blocks have built-in attention.

==========  ====================================  =================================================
names       Squeeze-and-Excitation                Efficient Channel Attention
==========  ====================================  =================================================
timm        ``layer1.0.se.fc1.weight``            ``layer1.0.se.conv.weight``
eca_net                                           ``layer1.0.eca.conv.weight`` (its authors' code)
cadene      ``layer1.0.se_module.fc1.weight``
==========  ====================================  =================================================

Their linear layers are 1x1 convolutions, named ``fc.0`` and ``fc.2`` in some packages. Ours are
below a module of the block: ``layer1.0.bn3.attention.fc1.weight``.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.surgery.attend import CHILD

_FOREIGN = re.compile(
    r"(?:(?P<block>.+)\.)?(?:eca|eca_layer|se|se_layer|se_module)\."
    r"(?P<layer>conv|fc1|fc2|fc\.0|fc\.2)\.(?P<kind>weight|bias)"
)
_LAYERS = {"fc.0": "fc1", "fc.2": "fc2"}
_OURS = re.compile(
    rf"(?P<site>.+)\.{CHILD}\.(?P<layer>conv|fc1|fc2)\.(?P<kind>weight|bias)"
)  # fmt: skip
# Name of the child of a block that contains the attention, by package and kind of layer.
NAMES = {
    "cadene": {"fc": "se_module"},
    "eca_net": {"conv": "eca"},
    "timm": {"fc": "se", "conv": "se"},
}


def foreign_attention(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the names of attention weights by block, each as a dict from tensor to full name."""
    blocks: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _FOREIGN.fullmatch(name):
            layer = _LAYERS.get(match["layer"], match["layer"])
            blocks.setdefault(match["block"] or "", {})[f"{layer}.{match['kind']}"] = name
    return blocks


def is_inside(site: str, block: str) -> bool:
    """Return whether a module is a block, or inside it; an empty name is the whole model's."""
    return not block or f"{site}.".startswith(f"{block}.")


def in_our_names(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], sites: Iterable[str], path: object
) -> dict[str, Tensor]:
    """Rename the attention of other packages to that of a model's attended sites.

    Args:
        weights: the weights in a file, by the model's names where those are the same.
        state: the model's state dict.
        sites: the names of the model's attended modules.
        path: the file, for messages.

    Raises:
        CheckpointError: the model's attention is at other sites, or has another size or kind; the
            message describes that of the file.
    """
    blocks = foreign_attention(name for name in weights if name not in state)
    if not blocks:
        return dict(weights)
    sites, found = list(sites), dict(weights)
    for block, tensors in blocks.items():
        inside = [site for site in sites if is_inside(site, block)]
        ours = {f"{site}.{CHILD}.{layer}" for site in inside for layer in tensors}
        held = {name for site in inside for name in state if name.startswith(f"{site}.{CHILD}.")}
        if len(inside) != 1 or ours != held:
            raise CheckpointError(_misplaced(path, blocks, weights, block, inside))
        for layer, name in tensors.items():
            own = f"{inside[0]}.{CHILD}.{layer}"
            tensor = found.pop(name)
            if tensor.shape[: state[own].dim()] != state[own].shape:
                raise CheckpointError(_misplaced(path, blocks, weights, block, inside))
            found[own] = tensor.reshape(state[own].shape)
    return found


def _misplaced(path, blocks, weights, block: str, sites: list[str]) -> str:
    here = f"attends {', '.join(sites[:2])}" if sites else "attends nothing"
    return (
        f"{path} holds {describe(blocks, weights)}, which does not match the model: in "
        f"{block or 'the whole of it'} it {here}. plan_from_weights(model, path) finds a surgery "
        "that matches"
    )


def describe(blocks: Mapping[str, Mapping[str, str]], weights: Mapping[str, Tensor]) -> str:
    """Describe the attention in a file: kind, number of blocks, sizes."""
    kinds = {"conv.weight" in tensors for tensors in blocks.values()}
    first = next(iter(blocks.values()))
    if kinds == {True}:
        sizes = sorted({weights[t["conv.weight"]].shape[-1] for t in blocks.values()})
        return f"ECA in {len(blocks)} blocks (kernel sizes {', '.join(map(str, sizes))})"
    if kinds == {False} and "fc1.weight" in first:
        latents = sorted({len(weights[t["fc1.weight"]]) for t in blocks.values()})
        bias = "with" if "fc1.bias" in first else "without"
        return (
            f"SE in {len(blocks)} blocks (latent channels {', '.join(map(str, latents))}, {bias} "
            "bias)"
        )
    return f"attention in {len(blocks)} blocks"


def in_names_of(package: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the attention in a state dict to the names of another package.

    Raises:
        ArgumentError: the package is unknown or has no such attention, or a block has several
            attentions.
    """
    if package not in NAMES:
        raise ArgumentError(f"names must be one of {', '.join(NAMES)}; got {package!r}")
    found: dict[str, Tensor] = {}
    sites: dict[str, str] = {}
    for name, tensor in state.items():
        match = _OURS.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        block = match["site"].rpartition(".")[0]
        child = NAMES[package].get(match["layer"].rstrip("12"))
        if child is None:
            raise ArgumentError(f"{package} has no name for {name}")
        if sites.setdefault(block, match["site"]) != match["site"]:
            raise ArgumentError(
                f"{sites[block]} and {match['site']} are both attended, but {package} has one "
                f"attention in {block or 'a block'}: use placement='residual'"
            )
        prefix = f"{block}.{child}" if block else child
        is_linear = match["kind"] == "weight" and match["layer"] != "conv"
        value = tensor[..., None, None] if is_linear else tensor
        found[f"{prefix}.{match['layer']}.{match['kind']}"] = value
    return _with_biases(found, package)


def _with_biases(state: dict[str, Tensor], package: str) -> dict[str, Tensor]:
    """Add biases of 0 if a package's layers have biases and ours do not."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found[name] = tensor
        bias = f"{name.removesuffix('weight')}bias"
        child = NAMES[package].get("fc")
        if child and re.search(rf"(^|\.){child}\.fc[12]\.weight$", name) and bias not in state:
            found[bias] = torch.zeros(len(tensor), dtype=tensor.dtype)
    return found
