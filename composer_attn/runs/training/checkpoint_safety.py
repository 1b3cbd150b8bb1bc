"""Look into a checkpoint before Composer does: it unpickles in full, and evaluates what is in it.

Composer runs whatever a file's pickle names, and evaluates the repr of each algorithm inside. Here
the file is first read as data, and the reprs are parsed.
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

# What Composer's checkpoints name besides torch's own list: the state of numpy's random numbers,
# torch's version, and wall-clock times. numpy's function by way of a pickle, as its module moved.
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

# Composer calls the function that this variable names on each file before it loads it.
_HOOK = "CHECKPOINT_VALIDATION_FUNCTION"
# The repr of an object without one of its own; no Python, so it cannot be evaluated.
_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")
_LONGEST = 10_000

_passed: dict[tuple[str, int, int, int], tuple[str, ...]] = {}


def check_checkpoint(path: str | os.PathLike) -> tuple[str, ...]:
    """Make sure that a file is a whole checkpoint of Composer's, and no more than that.

    A file that has passed and did not change since is not read again.

    Returns:
        The names of the algorithms that it was made with.

    Raises:
        TornCheckpointError: the file is cut short or damaged.
        CheckpointError: it holds what no checkpoint of Composer's does: code, an algorithm that is
            unknown, or has arguments that are more than values; or weights that are NaN.
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
        raise CheckpointError(f"{path} is no checkpoint of Composer's: it has no state of a model")
    algorithms = _algorithms(state.get("algorithms", []), path)
    for name, text in algorithms:
        _check_algorithm(name, text, path)
    check_numbers(model, path)
    names = tuple(name for name, _ in algorithms)
    if _identity(real) == known:
        _passed[known] = names
    return names


def local_file(load_path: str) -> str | None:
    """Return the file that a path means, if it is here: for Composer, all load rank 0's."""
    return None if "://" in load_path else load_path.format(rank=0, local_rank=0, node_rank=0)


@contextmanager
def guarded(load_path: str | None = None) -> Iterator[None]:
    """Check a checkpoint that is here, and have Composer check what it loads from anywhere."""
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
    """Serve as Composer's validation function: raise what is wrong with a file."""
    check_checkpoint(os.path.realpath(path))  # Composer links local files under a name of its own
    return True


def _identity(path: str) -> tuple[str, int, int, int]:
    status = os.stat(path)
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _algorithms(listed: Any, path: str | os.PathLike) -> list[tuple[str, str]]:
    """Return the name and the repr of each algorithm; no subclass of str, whose methods lie."""
    try:
        pairs = [(name, state["repr"]) for name, state in listed]
    except (TypeError, ValueError, KeyError):
        pairs = [(None, None)]
    if type(listed) is not list or any(type(part) is not str for pair in pairs for part in pair):
        raise CheckpointError(f"{path} is no checkpoint of Composer's: its algorithms are no list")
    return pairs


def _check_algorithm(name: str, text: str, path: str | os.PathLike) -> None:
    """Make sure that evaluating an algorithm's repr would build that algorithm, and do no more."""
    known = getattr(composer.algorithms, name, None) if name.isidentifier() else None
    if not (isinstance(known, type) and issubclass(known, Algorithm)):
        raise CheckpointError(f"{path} was made with {name[:80]!r}, which is no known algorithm")
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
    """Make sure that an attention is known: Composer would go on without it."""
    call = cast(ast.Call, ast.parse(text, mode="eval").body)  # as _builds has seen
    named = [*call.args, *(k.value for k in call.keywords if k.arg == "attention")]
    try:
        given: Any = named[0].value if named and isinstance(named[0], ast.Constant) else None
        find_attention(given)
    except ArgumentError as error:
        raise CheckpointError(
            f"{path} was made with an attention that is not here: {error}"
        ) from error


def _builds(name: str, text: str) -> bool:
    """Say whether a text is ``name(argument=value, ...)``, as Composer will read it."""
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
    """Say whether a node is a literal, or a time as Composer writes it: ``Time(1, TimeUnit.X)``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Time" and len(node.args) == 2:
        number, unit = node.args
        in_unit = isinstance(unit, ast.Attribute) and ast.unparse(unit.value) == "TimeUnit"
        return not node.keywords and isinstance(number, ast.Constant) and in_unit
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
