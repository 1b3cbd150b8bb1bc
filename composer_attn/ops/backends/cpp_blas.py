"""The BLAS that torch contains, for the products of small matrices within a call of C++."""

import ctypes
from functools import cache
from pathlib import Path

import torch

# MKL's, which takes the number of threads for the calling thread; other BLASes have none.
_THREADS = "MKL_Set_Num_Threads_Local"


def find_blas() -> list[ctypes.c_void_p] | None:
    """Return addresses in torch: of ``sgemm``, ``dgemm``, and of what sets their threads, or null.

    None if it does not export the first two.
    """
    try:
        folder = Path(torch.__file__).parent / "lib"
        blas = ctypes.CDLL(str(next(folder.glob("libtorch_cpu.*"))))
        found = [ctypes.cast(blas[name], ctypes.c_void_p) for name in ("sgemm_", "dgemm_")]
    except (OSError, AttributeError, StopIteration):
        return None
    threads = getattr(blas, _THREADS, None)
    pointer = ctypes.c_void_p() if threads is None else ctypes.cast(threads, ctypes.c_void_p)
    return [*found, pointer]


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
    use.argtypes, use.restype = [ctypes.c_void_p] * 3, None
    use(*pointers)
    return True
