"""The BLAS that torch contains, for the products of small matrices within a call of C++."""

import ctypes
from functools import cache
from pathlib import Path

import torch


def find_blas() -> list[ctypes.c_void_p] | None:
    """Return the addresses of ``sgemm`` and ``dgemm`` in torch; None if it does not export them."""
    try:
        folder = Path(torch.__file__).parent / "lib"
        blas = ctypes.CDLL(str(next(folder.glob("libtorch_cpu.*"))))
        return [ctypes.cast(blas[name], ctypes.c_void_p) for name in ("sgemm_", "dgemm_")]
    except (OSError, AttributeError, StopIteration):
        return None


@cache
def has_blas() -> bool:
    """Return whether torch exports a BLAS."""
    return find_blas() is not None


def give_blas(library: ctypes.CDLL) -> bool:
    """Let a library that has a ``use_gemm`` use torch's BLAS; return whether there is one."""
    pointers = find_blas()
    if pointers is None:
        return False
    use = library.use_gemm
    use.argtypes, use.restype = [ctypes.c_void_p] * 2, None
    use(*pointers)
    return True
