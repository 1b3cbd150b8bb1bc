"""Build the C++ sources into a shared library, once per machine, and load it."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno")
_FLAGS_BY_MACHINE = {"x86_64": ("-march=native",), "aarch64": ("-mcpu=native",)}
_SECONDS = 300  # a compiler that takes longer is stuck


def build(source: Path, **defined: str) -> ctypes.CDLL:
    """Compile a C++ file with the headers beside it, unless it is cached, and load the library.

    ``defined`` are preprocessor macros.

    The compiler is ``$CXX``, or the first of c++, g++ and clang++. The library is kept in
    ``$COMPOSER_ATTN_CACHE``, else in the user's cache folder, under a name with hashes of source,
    compiler, processor and its own content: a corrupt one is rebuilt, never loaded.

    Raises:
        OSError: there is no compiler, it fails, or the library cannot be loaded.
    """
    compiler = _compiler()
    macros = [f"-D{name}={value}" for name, value in defined.items()]
    flags = (*_FLAGS, *_FLAGS_BY_MACHINE.get(platform.machine(), ()), *macros)
    texts = [file.read_text() for file in sorted(source.parent.iterdir()) if file.is_file()]
    made_of = (*texts, *compiler, *_dates(compiler), *flags, _cpu())
    name = f"{source.stem}-{_digest(chr(0).join(made_of).encode())}"
    folder = _folder()
    library = _find_whole(folder, name) or _compile(compiler, [*flags, str(source)], folder, name)
    # OpenMP is resolved to the runtime that torch has loaded: two would compete for the cores.
    return ctypes.CDLL(str(library))


def _compiler() -> list[str]:
    """Return the compiler command, such as ``["/usr/bin/ccache", "g++"]``."""
    asked = os.environ.get("CXX", "").strip()
    try:
        commands = [shlex.split(asked)] if asked else [["c++"], ["g++"], ["clang++"]]
    except ValueError as error:
        raise OSError(f"CXX={asked!r} is not a command: {error}") from error
    for program, *rest in commands:
        found = shutil.which(program)
        if found is not None:
            return [found, *rest]
    looked_for = ", ".join(program for program, *_ in commands)
    raise OSError(f"no C++ compiler found (looked for {looked_for})")


def _dates(compiler: list[str]) -> list[str]:
    """Return the modification times of a command's programs, so that a new compiler rebuilds."""
    programs = filter(None, map(shutil.which, compiler))
    return [str(os.stat(program).st_mtime_ns) for program in programs]


def _find_whole(folder: Path, name: str) -> Path | None:
    """Find a cached library whose content matches the hash in its name; delete corrupt ones.

    Loading a corrupt one may crash the process (the loader maps the file and reads past its end).
    """
    for library in sorted(folder.glob(f"{name}-*.so")):
        try:
            if _digest(library.read_bytes()) == library.stem.rpartition("-")[2]:
                return library
            library.unlink()
        except OSError:  # owned by another user, or deleted in the meantime
            continue
    return None


def _compile(compiler: list[str], arguments: list[str], folder: Path, name: str) -> Path:
    """Compile to a temporary file and rename it: several processes may build at once."""
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        done = subprocess.run(
            [*compiler, *arguments, "-o", unfinished],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{shlex.join(compiler)} failed: {done.stderr.strip()[:500]}")
        library = folder / f"{name}-{_digest(Path(unfinished).read_bytes())}.so"
        os.replace(unfinished, library)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{shlex.join(compiler)} did not finish within {_SECONDS} s") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return library


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _folder() -> Path:
    """Return the folder of built libraries, creating it if necessary."""
    asked = os.environ.get("COMPOSER_ATTN_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = Path(asked) if asked else home / "composer_attn"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _cpu() -> str:
    """Return a description of the processor, which determines the instruction set."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*", text, re.MULTILINE)
    return "\n".join(sorted(set(lines))) or platform.processor()
