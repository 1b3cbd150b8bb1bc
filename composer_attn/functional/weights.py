"""Weights from a file, into a network that is plain or attended."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import CheckpointError
from composer_attn.functional.files import open_safely
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.names import walk
from composer_attn.surgery.orphans import check_no_orphans

# What training scripts nest a state dict under.
_NESTS = ("state_dict", "model", "model_state_dict", "model_ema")


def load_weights(
    model: nn.Module, path: str | os.PathLike, *, ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """Load a checkpoint into a model, in place, whether plain or attended; nothing in it can run.

    The file is opened with ``weights_only=True`` and torch's own list of types alone. Names may
    start with ``module.``, and the state dict may be nested as training scripts do. A plain
    checkpoint also loads into an attended model, whose attention then stays as it is. Everything is
    compared before anything is changed.

    Args:
        model: the network.
        path: a file that ``torch.save`` wrote.
        ignore: beginnings of names in the file that need no place in the model.

    Returns:
        The names of the model's own that the file has no weights for: its attention's, or none.

    Raises:
        TornCheckpointError: the file is cut short or damaged.
        CheckpointError: the file names code, is of another network, or holds NaN.
        ModelError: the model holds attention that is out of use.
        OSError: there is no such file, or it cannot be read.

    Example:
        >>> import tempfile, torch
        >>> from composer_attn import apply_eca, load_weights
        >>> plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(plain.state_dict(), f"{folder}/plain.pt")
        ...     apply_eca(plain, min_channels=8, include="1").chosen[0].name
        ...     load_weights(plain, f"{folder}/plain.pt")
        '1'
        ('1.attention.conv.weight',)
    """
    check_no_orphans(model)
    weights = _state_dict(open_safely(path), path)
    expected = model.state_dict()
    ignored = tuple(ignore)
    weights = {n: w for n, w in weights.items() if n in expected or not n.startswith(ignored)}
    kept = _own_attention(model, weights)
    problems = [
        *(f"{name} is missing" for name in expected if name not in weights and name not in kept),
        *(f"{name} has no place in the model" for name in weights if name not in expected),
        *(
            f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != _shape(tensor)
        ),
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{path} holds weights of another network: {'; '.join(problems[:3])}{more}"
        )
    check_numbers(weights, path)
    model.load_state_dict(weights, strict=False)  # of what is missing or too much, all is known
    return tuple(name for name in expected if name in kept)


def check_numbers(weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Make sure that weights are numbers, each with a place of its own in the file.

    Raises:
        CheckpointError: some are NaN, or a small file stands for a huge tensor.
    """
    for name, tensor in weights.items():
        size = tensor.numel() * tensor.element_size()
        if tensor.layout is torch.strided and size > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} holds less than the {size:,} bytes of {name}")
    spoilt = [n for n, t in weights.items() if t.is_floating_point() and bool(t.isnan().any())]
    if spoilt:
        more = f" and {len(spoilt) - 3} more" if len(spoilt) > 3 else ""
        raise CheckpointError(
            f"{path} holds NaN in {', '.join(spoilt[:3])}{more}: the run that wrote it had diverged"
        )


def _own_attention(model: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """List the state of attentions of which a file holds nothing at all."""
    sites = [name for name, module in walk(model) if is_attended(module)]
    prefixes = [f"{name}.{CHILD}." if name else f"{CHILD}." for name in sites]
    absent = tuple(p for p in prefixes if not any(name.startswith(p) for name in weights))
    return {name for name in model.state_dict() if name.startswith(absent)} if absent else set()


def _shape(tensor: Any) -> Any:
    # Of a lazy module there is none yet, and any will do.
    return getattr(tensor, "shape", None)


def _state_dict(content: Any, path: str | os.PathLike) -> dict[str, Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict: a mapping of names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
