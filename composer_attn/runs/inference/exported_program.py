"""Open an untrusted ``torch.export`` file, so that nothing but operations on tensors can run.

``torch.export.load`` unpickles parts of the file without restriction, evaluates sizes in it as
Python, executes its guards on sizes (from torch 2.8 on), loads libraries from it, and looks up any
function of torch that a node names. Here all of these are checked first.
"""

import ast
import importlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from composer_attn.errors import CheckpointError, first_line

# The entries of a file as torch 2.7 writes it, and as newer versions do, in a folder.
_ENTRIES = {
    "program": r"serialized_exported_program\.json",
    "pickle": r"serialized_(state_dict|constants|example_inputs)\.pt",
    "other": r"version|extra_files/.+",
}
_ENTRIES_IN_A_FOLDER = {
    "program": r"models/model\.json",
    "pickle": r"data/sample_inputs/model\.pt",
    "listing": r"data/(weights/model_weights|constants/model_constants)_config\.json",
    "numbers": r"data/(weights/weight|constants/tensor)_\d+",
    "other": r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|extra/.+",
}
_LISTED = re.compile(r"(weight|tensor)_\d+")
# Functions that traced networks consist of: operations on tensors (except the one that opens
# files), conversions to and from eight-bit integers, and arithmetic on their sizes.
_OPERATION = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+"
    r"|torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.(default|tensor)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(max|min|float|int|ite|not)"
)
# Eight-bit integers: the operations, and the module of torch whose import makes them known.
_QUANTIZED = "torch.ops.quantized_decomposed."
_REGISTERS_QUANTIZED = "torch.ao.quantization.quantize_pt2e"
# Sizes are strings evaluated by sympy, such as Mul(Integer(4), Symbol('s0', integer=True)).
_SIZE = re.compile(r"[\w\s+\-*/(),<>=']*", re.ASCII)
_WORD = re.compile(r"[^\W\d]\w*")
_SIZE_WORDS = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv"
    r"|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    r"|positive|nonnegative|integer|True|False"
)
# A guard compares sizes of the inputs, such as (L['input'].size()[2] // 2) != 1.
_GUARD_NODES = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Load),
    *(ast.cmpop, ast.boolop, ast.operator, ast.unaryop),
)
_GUARD_FUNCTIONS = ("max", "min", "torch.sym_max", "torch.sym_min")
_INPUT_SIZE = re.compile(r"L(\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]", re.ASCII)
# Any other string is a name, a type or a module path, without call syntax or quotes.
_NAME = re.compile(r"[\w.:/+*\- ]*")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
# The values below this key are only looked up, never evaluated.
_LOOKED_UP = "metadata"
_LARGEST_PROGRAM = 200_000_000  # bytes of JSON


def load_exported_program(path: Path) -> ExportedProgram:
    """Load a ``torch.export`` file that contains only tensors and operations on them.

    Raises:
        CheckpointError: it is not such a file, incomplete, or contains something else.
    """
    try:
        if _QUANTIZED in _check(path):
            importlib.import_module(_REGISTERS_QUANTIZED)
        return torch.export.load(path)
    except CheckpointError:
        raise
    except Exception as error:  # of any type: the file may contain anything
        raise CheckpointError(
            f"{path} is not a torch.export file that torch {torch.__version__} can read: "
            f"{first_line(error)}"
        ) from error


def _check(path: Path) -> str:
    """Check a file, and return its program as JSON."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is compressed, which torch.export never does")
        names = _by_kind([entry.filename for entry in entries], path)
        (program,) = names["program"]
        if archive.getinfo(program).file_size > _LARGEST_PROGRAM:
            raise CheckpointError(f"{path} holds a program that is larger than any network's")
        for name in names["pickle"]:
            _check_pickle(archive.read(name), name, path)
        for name in names["listing"]:
            _check_listing(json.loads(archive.read(name)), name, path)
        content = archive.read(program).decode()
    _check_texts(json.loads(content), path)
    return content


def _by_kind(names: list[str], path: Path) -> dict[str, list[str]]:
    """Return the names of a file's entries by their kind.

    Raises:
        CheckpointError: one is unknown or there twice, or there is no program.
    """
    folder = names[0].partition("/")[0] + "/" if names else ""
    in_folder = all(name.startswith(folder) for name in names)
    table, start = (_ENTRIES_IN_A_FOLDER, len(folder)) if in_folder else (_ENTRIES, 0)
    found = {
        kind: [name for name in names if re.fullmatch(pattern, name[start:])]
        for kind, pattern in table.items()
    }
    known = [name for each in found.values() for name in each]
    if len(found["program"]) != 1 or sorted(known) != sorted(set(names)):
        raise CheckpointError(
            f"{path} is not a torch.export file as torch {torch.__version__} writes it"
        )
    return {"listing": [], **found}


def _check_pickle(content: bytes, name: str, path: Path) -> None:
    """Check that torch would unpickle only tensors and plain containers."""
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of any type
        raise CheckpointError(f"{path} holds more than tensors in its {name}") from error


def _check_listing(listing: Any, name: str, path: Path) -> None:
    """Check that torch would read all tensors as plain numbers."""
    for tensor in listing["config"].values():
        if tensor["use_pickle"] or not _LISTED.fullmatch(tensor["path_name"]):
            raise CheckpointError(f"{path} holds more than tensors in its {name}")
    _check_texts(listing, path)


def _check_texts(document: Any, path: Path) -> None:
    for key, text in _texts("", document):
        if not _is_harmless(key, text):
            raise CheckpointError(
                f"{path} holds more than operations on tensors: {key} is {text[:60]!r}"
            )


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield all strings of a JSON document, including keys, each with the key that it is under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != _LOOKED_UP:
                yield "a name", name
                yield from _texts(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(key, inner)
    elif isinstance(value, str):
        yield key, value


def _is_harmless(key: str, text: str) -> bool:
    if key == "target" and (text.startswith(("torch", "_operator", "#")) or ".ops." in text):
        return _OPERATION.fullmatch(text) is not None
    if key == "expr_str":
        words = _WORD.findall(text)
        return bool(_SIZE.fullmatch(text)) and all(map(_SIZE_WORDS.fullmatch, words))
    if key == "guards_code":
        return is_guard(text)
    if key.endswith("_spec"):
        return _holds_containers(json.loads(text) if text else None)
    return _NAME.fullmatch(text) is not None


def _holds_containers(spec: Any) -> bool:
    """Return whether a description of arguments names only tuples, lists and dicts."""
    if isinstance(spec, dict):
        known = spec.get("type") in _CONTAINERS
        return known and all(_holds_containers(inner) for inner in spec.values())
    return not isinstance(spec, list) or all(_holds_containers(inner) for inner in spec)


def is_guard(text: str) -> bool:
    """Return whether Python code only compares sizes of inputs."""
    return _is_of_sizes(ast.parse(text, mode="eval"))


def _is_of_sizes(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Subscript):
        return _INPUT_SIZE.fullmatch(ast.unparse(node)) is not None
    if isinstance(node, ast.Call):
        known = ast.unparse(node.func) in _GUARD_FUNCTIONS and not node.keywords
        return known and all(map(_is_of_sizes, node.args))
    return isinstance(node, _GUARD_NODES) and all(map(_is_of_sizes, ast.iter_child_nodes(node)))
