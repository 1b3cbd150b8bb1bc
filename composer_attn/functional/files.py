"""Open a file of tensors that somebody else made: nothing in it runs, nothing in it swells."""

import importlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, serialization

from composer_attn.errors import CheckpointError, TornCheckpointError, first_line

_LONGEST_HEADER = 100_000_000  # bytes, as the format has it


def open_safely(path: str | os.PathLike, allowed: Sequence[Any] = (), legacy: bool = True) -> Any:
    """Return what a file written by ``torch.save`` holds, without running anything in it.

    Besides tensors and plain containers the file may name the ``allowed`` types alone, whatever
    else the process has told torch is safe. A file that would unpack to more than it is, is refused
    before it is unpacked, and the checksum of every part is compared.

    Args:
        path: the file.
        allowed: types and functions that the file may name besides torch's own list.
        legacy: whether the format of torch before 1.6, which has no checksums, will do.

    Raises:
        TornCheckpointError: the file is cut short or damaged.
        CheckpointError: the file names code, or could not be what ``torch.save`` wrote.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    # What begins like a zip archive and is none ends too early.
    zipped = start.startswith(b"PK")
    if zipped:
        _check_archive(path)
    elif not legacy:
        raise TornCheckpointError(f"{path} is no checkpoint, or not a whole one")
    with _only(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            if start[:1] != b"\x80" and not zipped:
                raise TornCheckpointError(f"{path} holds no weights that can be read") from error
            # torch's own words go on to say how to run what is inside.
            why = _named(path, zipped) or "its pickle is more than data"
            raise CheckpointError(
                f"{path} holds no weights that are safe to load: {why}"
            ) from error
        except Exception as error:  # of all kinds: the file may hold anything
            raise TornCheckpointError(
                f"{path} holds no weights that can be read: {_first(error)}"
            ) from error


def is_safetensors(path: str | os.PathLike) -> bool:
    """Say whether a file is one of safetensors, by its ending or by how it begins."""
    with open(path, "rb") as file:
        start = file.read(9)
    # The length of a JSON object in 8 bytes, then that object.
    begins = start[8:] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER
    return begins or os.fspath(path).endswith(".safetensors")


def open_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors, a format that cannot hold code.

    Raises:
        ImportError: the package that reads them is not installed; the message says which.
        TornCheckpointError: the file is cut short or damaged.
        OSError: it cannot be read.
    """
    try:
        # By name: what these files need is torch alone, unless somebody brings such a file.
        package = importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(f"{path} is read by safetensors: pip install safetensors") from error
    try:
        return package.load_file(path, device="cpu")
    except OSError:
        raise
    except Exception as error:  # of the package's own kind, and others
        raise TornCheckpointError(
            f"{path} is no file of safetensors, or not a whole one: {_first(error)}"
        ) from error


def _check_archive(path: str | os.PathLike) -> None:
    """Make sure that an archive is whole, and no larger inside than it is outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
            size = sum(entry.file_size for entry in entries)
            if packed or size > os.path.getsize(path):
                raise CheckpointError(
                    f"{path} would unpack to {size:,} bytes from {os.path.getsize(path):,}: "
                    "torch.save packs nothing"
                )
            names = [entry.filename for entry in entries]
            if len(set(names)) != len(names):
                raise CheckpointError(f"{path} holds two parts of one name")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise TornCheckpointError(f"{path} is no checkpoint, or not a whole one") from error
    if damaged is not None:
        raise TornCheckpointError(f"{path} is damaged: the checksum of {damaged} is another")


@contextmanager
def _only(allowed: Sequence[Any]) -> Iterator[None]:
    """Set aside what others have declared safe: importing torch.distributed.tensor does so."""
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
    except Exception:  # it was refused before, and only the words for it are missing
        names = []
    return f"it names {', '.join(sorted(names)[:3])}" if names else ""


def _first(error: Exception) -> str:
    return first_line(error)
