"""Open untrusted files of tensors: no code in them runs, and they cannot expand in memory."""

import importlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, serialization

from composer_attn.errors import CheckpointError, TornCheckpointError, first_few, first_line

_LONGEST_HEADER = 100_000_000  # bytes, by the format's specification


def open_safely(path: str | os.PathLike, allowed: Sequence[Any] = (), legacy: bool = True) -> Any:
    """Load a file written by ``torch.save`` without running any code in it.

    Besides tensors and plain containers the file may refer only to the ``allowed`` types, whatever
    other types the process has declared safe to torch. A file that would unpack to more than its
    size is rejected before it is unpacked, and the checksum of every part is verified.

    Args:
        path: the file.
        allowed: types and functions that the file may refer to besides torch's own list.
        legacy: whether to accept the format of torch before 1.6, which has no checksums.

    Raises:
        TornCheckpointError: the file is truncated or corrupt.
        CheckpointError: the file refers to code, or cannot have been written by ``torch.save``.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    # A file that begins like a zip archive but is not a valid one is truncated.
    zipped = start.startswith(b"PK")
    if zipped:
        _check_archive(path)
    elif not legacy:
        raise TornCheckpointError(f"{path} is not a checkpoint, or is incomplete")
    with _only(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            if start[:1] != b"\x80" and not zipped:
                raise TornCheckpointError(f"{path} holds no readable weights") from error
            # Not torch's message, which goes on to explain how to run the code inside.
            why = _named(path, zipped) or "its pickle contains more than data"
            raise CheckpointError(f"{path} is not safe to load: {why}") from error
        except Exception as error:  # of any type: the file may contain anything
            why = _first(error)
            raise TornCheckpointError(f"{path} holds no readable weights: {why}") from error


def is_safetensors(path: str | os.PathLike) -> bool:
    """Return whether a file is in safetensors format, by its suffix or its first bytes."""
    with open(path, "rb") as file:
        start = file.read(9)
    # The format begins with the length of a JSON object in 8 bytes, then that object.
    begins = start[8:] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER
    return begins or os.fspath(path).endswith(".safetensors")


def open_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, a format that cannot contain code.

    Raises:
        ImportError: the package that reads it is not installed; the message names it.
        TornCheckpointError: the file is truncated or corrupt.
        OSError: it cannot be read.
    """
    package = _safetensors(path)
    try:
        return package.load_file(path, device="cpu")
    except OSError:
        raise
    except Exception as error:  # SafetensorError and others
        raise TornCheckpointError(
            f"{path} is not a safetensors file, or is incomplete: {_first(error)}"
        ) from error


def save_safetensors(tensors: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Write tensors to a safetensors file.

    Raises:
        ImportError: the package that writes it is not installed; the message names it.
        OSError: it cannot be written.
    """
    _safetensors(path).save_file(tensors, path)


def _safetensors(path: str | os.PathLike) -> Any:
    try:
        # Imported lazily: the package requires only torch unless there is such a file.
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(f"{path} needs safetensors: pip install safetensors") from error


def _check_archive(path: str | os.PathLike) -> None:
    """Check that an archive is intact, and that its contents are no larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
            size = sum(entry.file_size for entry in entries)
            if packed or size > os.path.getsize(path):
                raise CheckpointError(
                    f"{path} would unpack to {size:,} bytes from {os.path.getsize(path):,}: "
                    "torch.save does not compress"
                )
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise CheckpointError(f"{path} holds two entries with the same name")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise TornCheckpointError(f"{path} is not a checkpoint, or is incomplete") from error
    if damaged is not None:
        raise TornCheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Allow only these types, suspending others (torch.distributed.tensor declares some safe)."""
    others = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        with serialization.safe_globals(list(allowed)):
            yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(others)


def _named(path: str | os.PathLike, zipped: bool) -> str:
    try:
        names = serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
    except Exception:  # the file is rejected in any case; only the detail is missing
        names = []
    return f"it refers to {first_few(sorted(names))}" if names else ""


def _first(error: Exception) -> str:
    return first_line(error)
