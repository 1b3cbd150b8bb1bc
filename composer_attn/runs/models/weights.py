"""Pretrained weights from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from composer_attn.errors import ArgumentError
from composer_attn.runs.models.table import AUXILIARY

# What training scripts nest a state dict under.
_NESTS = ("state_dict", "model", "model_state_dict", "model_ema")


def is_file(weights: Any) -> bool:
    """Say whether ``weights`` means a file, rather than the name of published weights."""
    text = str(weights)
    return "/" in text or text.endswith((".pt", ".pth", ".bin")) or Path(text).exists()


def check_published(model: str, weights: str) -> None:
    """Make sure that a name of weights is one that torchvision publishes for a model.

    Raises:
        ArgumentError: it is not; the message says which are.
    """
    if model not in torchvision.models.list_models(module=torchvision.models):
        instead = "; pretrained: true" if model.startswith("timm/") else ""
        raise ArgumentError(f"weights of {model} must be a file{instead}; got {weights!r}")
    published = torchvision.models.get_model_weights(model)
    if weights.removeprefix(f"{published.__name__}.") not in published.__members__:
        valid = ", ".join(["a file", *sorted(published.__members__)])
        raise ArgumentError(f"weights of {model} must be one of {valid}; got {weights!r}")


def load_weights(network: nn.Module, path: str) -> None:
    """Load the plain checkpoint of a network, torchvision's or timm's for example, into it.

    The file is unpickled with ``weights_only=True``: it cannot run code. Names may start with
    ``module.``, and the state dict may be nested as training scripts do.

    Raises:
        ArgumentError: it is no such file, or holds another network's weights.
        FileNotFoundError: there is no such file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of all kinds: the file may hold anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ArgumentError(f"{path} holds no weights that are safe to load: {first}") from error
    expected = network.state_dict()
    weights = _state_dict(content, path)
    # Of networks that were built without these.
    auxiliary = tuple(f"{name}." for name in AUXILIARY)
    weights = {n: w for n, w in weights.items() if n in expected or not n.startswith(auxiliary)}
    problems = [
        *(f"{name} is missing" for name in expected if name not in weights),
        *(f"{name} has no place in the model" for name in weights if name not in expected),
        *(
            f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ArgumentError(
            f"{path} holds weights of another network: {'; '.join(problems[:3])}{more}"
        )
    network.load_state_dict(weights)


def _state_dict(content: Any, path: str) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ArgumentError(f"{path} holds no state dict: a mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
