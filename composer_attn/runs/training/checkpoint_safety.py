"""Check a checkpoint before Composer loads it, since loading can run code that is in it.

Composer unpickles the whole file, executing anything that the pickle names, and evaluates the repr
of each algorithm in it. Here the file is first read as data only, and the reprs are parsed.
"""

import ast
import datetime
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import composer.algorithms
import numpy
from composer.core import Algorithm
from torch import Tensor
from torch.torch_version import TorchVersion

from composer_attn.algorithms import Attention
from composer_attn.attention import find_attention
from composer_attn.errors import ArgumentError, CheckpointError
from composer_attn.functional.files import open_safely
from composer_attn.functional.weights import check_numbers

# Types in Composer's checkpoints besides torch's own safe list: numpy's random state, torch's
# version and wall-clock times. numpy's function is taken from a pickle, as its module has moved.
_REBUILD_ARRAY = numpy.empty(0).__reduce__()[0]
ALLOWED = (
    numpy.ndarray,
    numpy.dtype,
    type(numpy.dtype("uint32")),
    (_REBUILD_ARRAY, "numpy.core.multiarray._reconstruct"),
    (_REBUILD_ARRAY, "numpy._core.multiarray._reconstruct"),
    TorchVersion,
    datetime.timedelta,
)

# Environment variable naming the function that Composer calls on each file before loading it.
_HOOK = "CHECKPOINT_VALIDATION_FUNCTION"
# The default repr of an object; it is not valid Python, so it cannot be evaluated.
_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
_LONGEST = 10_000

_passed: dict[tuple[str, int, int, int], tuple[str, ...]] = {}


def check_checkpoint(path: str | os.PathLike) -> tuple[str, ...]:
    """Check that a file is a complete checkpoint of Composer's, and contains nothing else.

    A file that has passed and has not changed since is not read again.

    Returns:
        The names of the algorithms in the checkpoint.

    Raises:
        TornCheckpointError: the file is truncated or damaged.
        CheckpointError: it contains something that no checkpoint of Composer's does: code, an
            unknown algorithm or one whose arguments are not plain values, or weights that are NaN.
        OSError: it cannot be read.
    """
    real = os.path.realpath(path)
    known = _identity(real)
    if known in _passed:
        return _passed[known]
    content = open_safely(path, ALLOWED, legacy=False)
    state: Any = content.get("state") if isinstance(content, Mapping) else None
    model = state.get("model") if isinstance(state, Mapping) else None
    if not isinstance(model, Mapping) or not all(isinstance(v, Tensor) for v in model.values()):
        raise CheckpointError(f"{path} is not a Composer checkpoint: it has no model state")
    algorithms = _algorithms(state.get("algorithms", []), path)
    for name, text in algorithms:
        _check_algorithm(name, text, path)
    check_numbers(model, path)
    names = tuple(name for name, _ in algorithms)
    if _identity(real) == known:
        _passed[known] = names
    return names


def local_file(load_path: str) -> str | None:
    """Return the file of a local load path, else None; all ranks load rank 0's, as in Composer."""
    return None if "://" in load_path else load_path.format(rank=0, local_rank=0, node_rank=0)


@contextmanager
def guarded(load_path: str | None = None) -> Iterator[None]:
    """Check a local checkpoint, and make Composer check every file that it loads, also remote."""
    file = None if load_path is None else local_file(load_path)
    if file is not None:
        check_checkpoint(file)
    before = os.environ.get(_HOOK)
    os.environ[_HOOK] = f"{__name__}.{validate.__name__}"
    try:
        yield
    finally:
        del os.environ[_HOOK]
        if before is not None:
            os.environ[_HOOK] = before


def validate(path: str | os.PathLike, specs: Any = None) -> bool:
    """Implement Composer's validation function: raise if a file is not a safe checkpoint."""
    check_checkpoint(os.path.realpath(path))  # Composer passes a symlink to local files
    return True


def _identity(path: str) -> tuple[str, int, int, int]:
    status = os.stat(path)
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _algorithms(listed: Any, path: str | os.PathLike) -> list[tuple[str, str]]:
    """Return name and repr of each algorithm; refuse str subclasses, whose methods may lie."""
    try:
        pairs = [(name, state["repr"]) for name, state in listed]
    except (TypeError, ValueError, KeyError):
        pairs = [(None, None)]
    if type(listed) is not list or any(type(part) is not str for pair in pairs for part in pair):
        raise CheckpointError(f"{path} is not a Composer checkpoint: its algorithms are not a list")
    return pairs


def _check_algorithm(name: str, text: str, path: str | os.PathLike) -> None:
    """Check that evaluating an algorithm's repr would only construct that algorithm."""
    known = getattr(composer.algorithms, name, None) if name.isidentifier() else None
    if not (isinstance(known, type) and issubclass(known, Algorithm)):
        raise CheckpointError(f"{path} was made with {name[:80]!r}, an unknown algorithm")
    if _ADDRESS.fullmatch(text) and not known.required_on_load():
        return
    if len(text) > _LONGEST or not _builds(name, text):
        raise CheckpointError(
            f"{path} describes the algorithm {name} as {text[:80]!r}, which is more than its name "
            "and plain values"
        )
    if known is Attention:
        _check_registered(text, path)


def _check_registered(text: str, path: str | os.PathLike) -> None:
    """Check that an attention is registered: without it Composer would silently continue."""
    call = cast(ast.Call, ast.parse(text, mode="eval").body)  # as checked by _builds
    named = [*call.args, *(k.value for k in call.keywords if k.arg == "attention")]
    try:
        given: Any = named[0].value if named and isinstance(named[0], ast.Constant) else None
        find_attention(given)
    except ArgumentError as error:
        raise CheckpointError(
            f"{path} was made with an attention that is unknown here: {error}"
        ) from error


def _builds(name: str, text: str) -> bool:
    """Return whether Composer would parse a text as ``name(argument=value, ...)``."""
    try:
        call = ast.parse(f"algorithms.{text}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return (
        isinstance(call, ast.Call)
        and ast.unparse(call.func) == f"algorithms.{name}"
        and all(keyword.arg is not None for keyword in call.keywords)
        and all(_is_value(node) for node in [*call.args, *(k.value for k in call.keywords)])
    )


def _is_value(node: ast.expr) -> bool:
    """Return whether a node is a literal, or a time in Composer's form ``Time(1, TimeUnit.X)``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Time" and len(node.args) == 2:
        number, unit = node.args
        in_unit = isinstance(unit, ast.Attribute) and ast.unparse(unit.value) == "TimeUnit"
        return not node.keywords and isinstance(number, ast.Constant) and in_unit
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
