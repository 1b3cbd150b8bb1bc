"""Weights in a model section: a file, or the name of published ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torchvision
from torchvision.models import WeightsEnum

from composer_attn.errors import ArgumentError


def is_file(weights: Any) -> TypeGuard[str]:
    """Return whether ``weights`` is a file, rather than the name of published weights."""
    text = str(weights)
    return (
        "/" in text or text.endswith((".pt", ".pth", ".bin", ".safetensors")) or Path(text).exists()
    )


def check_published(model: str, weights: str) -> None:
    """Check that torchvision publishes weights of this name for a model.

    Raises:
        ArgumentError: it does not; the message lists the valid names.
    """
    if model not in torchvision.models.list_models():
        instead = "; pretrained: true" if model.startswith("timm/") else ""
        raise ArgumentError(f"weights of {model} must be a file{instead}; got {weights!r}")
    published = torchvision.models.get_model_weights(model)
    if weights.removeprefix(f"{published.__name__}.") not in published.__members__:
        valid = ", ".join(["a file", *sorted(published.__members__)])
        raise ArgumentError(f"weights of {model} must be one of {valid}; got {weights!r}")


def published_weights(model: str, weights: str) -> WeightsEnum:
    """Return the weights that torchvision publishes for a model under a name."""
    return torchvision.models.get_model_weights(model)[weights.rpartition(".")[2]]


def classes_of(model: str, weights: str) -> int:
    """Return the number of classes that published weights were trained for."""
    return len(published_weights(model, weights).meta["categories"])


def arguments_by_weights(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network that the weights of its section set by themselves.

    Code that builds the network again without these weights has to pass them: images are scaled in
    the network (GoogLeNet, Inception), or have the size of the weights (ViT, MaxViT).
    """
    model, weights = section["name"], section.get("weights")
    if weights is None or is_file(weights):
        return {}
    if section.get("num_classes") not in (None, classes_of(model, weights)):
        return {}  # then the network is built by itself, and filled
    size = published_weights(model, weights).meta["min_size"]
    if model in ("googlenet", "inception_v3"):
        return {"transform_input": True}
    if model.startswith("vit_"):
        return {"image_size": size[0]}
    return {"input_size": size} if model.startswith("maxvit") else {}
