"""Builds the C++ sources into a shared library, once a machine, and loads it."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno")
_FLAGS_BY_MACHINE = {"x86_64": ("-march=native",), "aarch64": ("-mcpu=native",)}
_SECONDS = 300  # a compiler that takes longer is stuck


def build(source: Path, **defined: str) -> ctypes.CDLL:
    """Compile a C++ file, with the headers beside it, unless this machine has it compiled; load it.

    ``defined`` are names that stand for something in it.

    The compiler is ``$CXX``, or the first of c++, g++ and clang++. The library is kept in
    ``$COMPOSER_ATTN_CACHE``, else in the user's cache folder, under a name that stands for source,
    compiler and processor.

    Raises:
        OSError: there is no compiler, it fails, or the library cannot be loaded.
    """
    compiler = _compiler()
    macros = [f"-D{name}={value}" for name, value in defined.items()]
    flags = (*_FLAGS, *_FLAGS_BY_MACHINE.get(platform.machine(), ()), *macros)
    texts = [file.read_text() for file in sorted(source.parent.iterdir()) if file.is_file()]
    made_of = (*texts, compiler, str(os.stat(compiler).st_mtime_ns), *flags, _cpu())
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]
    library = _folder() / f"{source.stem}-{name}.so"
    if not library.exists():
        _compile([compiler, *flags, str(source)], library)
    # OpenMP comes from the library that torch has loaded: two would fight for the cores.
    return ctypes.CDLL(str(library))


def _compiler() -> str:
    asked = os.environ.get("CXX")
    names = asked.split()[:1] if asked else ("c++", "g++", "clang++")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise OSError(f"no C++ compiler found (looked for {', '.join(names)})")
    return found


def _compile(command: list[str], library: Path) -> None:
    """Write the library under another name first: several processes may build at once."""
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", unfinished],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{command[0]} failed: {done.stderr.strip()[:500]}")
        os.replace(unfinished, library)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not finish within {_SECONDS} s") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _folder() -> Path:
    """Find, or make, the folder of built libraries."""
    asked = os.environ.get("COMPOSER_ATTN_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = Path(asked) if asked else home / "composer_attn"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _cpu() -> str:
    """Name what the compiler's choice of instructions depends on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*", text, re.MULTILINE)
    return "\n".join(sorted(set(lines))) or platform.processor()
