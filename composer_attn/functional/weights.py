"""Load weights from a file into a plain or attended network."""

import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from composer_attn.errors import ArgumentError, CheckpointError, first_few
from composer_attn.functional.attention_names import in_our_names
from composer_attn.functional.files import is_safetensors, open_safely, open_safetensors
from composer_attn.functional.inert import INERT, is_inert
from composer_attn.surgery.attend import CHILD, is_attended
from composer_attn.surgery.names import as_patterns, walk
from composer_attn.surgery.orphans import check_no_orphans

# Keys under which training scripts nest a state dict, including Composer's "state" and "model".
_NESTS = (
    "state_dict", "model", "model_state_dict", "model_state", "model_ema", "state_dict_ema",
    "net", "network", "weights", "state",
)  # fmt: skip
_DEEPEST = 4
# Names of the network inside a wrapper: torch.compile; DDP, DataParallel, ComposerClassifier; FSDP;
# activation checkpointing.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def load_weights(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    ignore: str | Sequence[str] = (),
    new_classifier: bool = False,
) -> tuple[str, ...]:
    """Load a checkpoint into a plain or attended model, in place, without running code in it.

    The file was written by ``torch.save`` or is in safetensors format. The former is loaded with
    ``weights_only=True``; objects that training scripts store beside the weights (arguments, NumPy
    scalars, dates, paths) are skipped without being constructed. The state dict may be nested as in
    common training scripts and in the checkpoints of Composer and of this package. Its names may
    contain prefixes added by wrappers (``module.``, ``_orig_mod.``) at any level, and so may the
    model's.

    The built-in attention of timm's, ECA-Net's and Cadene's networks (``layer1.0.se.fc1.weight``)
    is recognized by name, and loads into ours in the same block: see :func:`plan_from_weights`.

    A plain checkpoint also loads into an attended model, whose attention is then unchanged. All
    checks precede the first change.

    Args:
        model: the network.
        path: the file.
        ignore: prefixes of names to leave out, such as ``"fc."``: these entries of the file are
            skipped, whatever their shapes, and those of the model are unchanged.
        new_classifier: whether the model may have a different number of classes than the file:
            layers whose weights differ only in that number keep the model's own, to be trained.

    Returns:
        The names of the model's entries that were not loaded: those of attention that the file does
        not contain, those of a new classifier, and the ignored ones.

    Raises:
        TornCheckpointError: the file is truncated or corrupt.
        CheckpointError: the file refers to code, is of another network, or contains NaN.
        ModelError: the model holds orphaned attention.
        ArgumentError: ``ignore`` is not a string, or would leave out everything.
        ImportError: the file is in safetensors format, and safetensors is not installed.
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
    left_out = _beginnings(ignore)
    return fill(model, _open(path), path, left_out, new_classifier)


def _open(path: str | os.PathLike) -> dict[str, Tensor]:
    found = open_safetensors(path) if is_safetensors(path) else open_safely(path, INERT)
    return _state_dict(found, path)


def read_weights(model: nn.Module, path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a file, by the model's names for them where it has any.

    Raises:
        CheckpointError, ImportError, OSError: as :func:`load_weights`.
    """
    named = _open(path)
    known = _known_as(named, model.state_dict())
    return {known[name]: tensor for name, tensor in named.items()}


def fill(
    model: nn.Module,
    named: Mapping[str, Tensor],
    path: str | os.PathLike,
    left_out: tuple[str, ...] = (),
    new_classifier: bool = False,
) -> tuple[str, ...]:
    """Load a state dict that came from ``path``, as :func:`load_weights` does."""
    state = model.state_dict()
    known = _known_as(named, state)
    weights = {known[n]: w for n, w in named.items() if not _begins(left_out, n, known[n])}
    weights = in_our_names(weights, state, _sites(model), path)
    weights = {name: w for name, w in weights.items() if not _counts_for_frozen(name, state)}
    ignored = {name for name in state if _begins(left_out, name)}
    expected = {name: tensor for name, tensor in state.items() if name not in ignored}
    if new_classifier:
        for name in _of_other_classes(expected, weights):
            ignored.add(name)
            del expected[name], weights[name]
    kept = _own_attention(model, weights)
    problems = [
        *(f"{name} is missing" for name in expected if name not in weights and name not in kept),
        *(f"{name} is not in the model" for name in weights if name not in expected),
        *(
            f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != _shape(tensor)
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{path} holds weights of a different network: {first_few(problems, '; ')}"
        )
    check_numbers(weights, path)
    model.load_state_dict(weights, strict=False)  # missing and unexpected names are checked above
    return tuple(name for name in state if name in kept or name in ignored)


def check_numbers(weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Check that weights are not NaN, and that the file stores each of their elements.

    Raises:
        CheckpointError: some are NaN, or a small storage is expanded to a huge tensor.
    """
    for name, tensor in weights.items():
        size = tensor.numel() * tensor.element_size()
        if tensor.layout is torch.strided and size > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path} holds fewer than the {size:,} bytes of {name}")
    spoilt = [n for n, t in weights.items() if t.is_floating_point() and bool(t.isnan().any())]
    if spoilt:
        raise CheckpointError(
            f"{path} holds NaN in {first_few(spoilt)}: the run that wrote it had diverged"
        )


def _sites(model: nn.Module) -> list[str]:
    return [name for name, module in walk(model) if is_attended(module)]


def _own_attention(model: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Return the state-dict names of the attentions that are entirely absent from a file."""
    prefixes = [f"{name}.{CHILD}." if name else f"{CHILD}." for name in _sites(model)]
    absent = tuple(p for p in prefixes if not any(name.startswith(p) for name in weights))
    return {name for name in model.state_dict() if name.startswith(absent)} if absent else set()


def _of_other_classes(expected: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """List the weights that differ from the model's only in the number of classes, dimension 0.

    Empty unless whole layers differ, all in the same ratio, as a detector has four coordinates for
    each class: otherwise it is another network.
    """
    shapes = {n: (_shape(t), weights[n].shape) for n, t in expected.items() if n in weights}
    found = [name for name, (own, other) in shapes.items() if own is not None and own != other]
    layers = {name.rpartition(".")[0] for name in found}
    whole = all(name in found for name in shapes if name.rpartition(".")[0] in layers)
    pairs = [shapes[name] for name in found]
    alike = all(own and other and own[1:] == other[1:] and other[0] for own, other in pairs)
    if not (whole and alike and len({Fraction(own[0], other[0]) for own, other in pairs}) == 1):
        return []
    return found


def _counts_for_frozen(name: str, state: Mapping[str, Any]) -> bool:
    """Return whether a file's entry counts the batches of a norm that is frozen in the model."""
    norm, _, entry = name.rpartition(".")
    counts = entry == "num_batches_tracked" and name not in state
    return counts and f"{norm}.running_mean" in state


def _shape(tensor: Any) -> Any:
    # An uninitialized parameter of a lazy module has none, and accepts any.
    return getattr(tensor, "shape", None)


def _state_dict(content: Any, path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a file by name, ignoring everything else."""
    for _ in range(_DEEPEST):
        nests = [content[n] for n in _NESTS if isinstance(content, Mapping) and n in content]
        inner = next((n for n in nests if isinstance(n, Mapping) and not is_inert(n)), None)
        if inner is None:
            break
        content = inner
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return tensors


def _known_as(names: Iterable[str], expected: Iterable[str]) -> dict[str, str]:
    """Map the names in a file to those of the model, in the way that matches most of them.

    The candidates are the names as they are; without the wrapper prefixes that all of them share;
    and without any wrapper names, in both file and model. All are tried, since a network may have a
    child with the name of a wrapper.
    """
    ways = [{name: name for name in names}]
    firsts = {name.partition(".")[0] for name in names}
    while len(firsts) == 1 and firsts <= _WRAPPERS:
        ways.append({name: known.partition(".")[2] for name, known in ways[-1].items()})
        firsts = {known.partition(".")[0] for known in ways[-1].values()}
    bare = {_without_wrappers(name): name for name in expected}
    everywhere = {n: bare.get(_without_wrappers(n), _without_wrappers(n)) for n in ways[0]}
    if len(bare) == len(set(expected)) and len(set(everywhere.values())) == len(everywhere):
        ways.append(everywhere)
    return max(ways, key=lambda way: len(set(way.values()) & set(expected)))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _beginnings(ignore: str | Sequence[str]) -> tuple[str, ...]:
    found = as_patterns("ignore", ignore) or ()
    if "" in found:
        raise ArgumentError('ignore must be prefixes of names, like "fc."; "" matches every name')
    return found


def _begins(beginnings: tuple[str, ...], *names: str) -> bool:
    """Return whether a name has one of the prefixes, with or without wrapper names."""
    return any(name.startswith(beginnings) for n in names for name in (n, _without_wrappers(n)))
